// The order in which embedding_backward adds: checks dwte bit for bit. Rows are in the order of
// their tokens; rows of equal tokens stay in their own order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cuda/operations.h"
#include "kernels/device/device.h"
#include "tests/cuda/device_memory.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

constexpr int64_t kStretch = 32;  // sorted rows that are added one by one

struct Sizes {
  int64_t rows, channels, vocabulary;
};

// Rows by token, without those outside the vocabulary.
std::vector<int64_t> sorted_rows(const std::vector<int32_t>& tokens, int64_t vocabulary) {
  std::vector<int64_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const auto token = [&](int64_t n) { return tokens[static_cast<size_t>(n)]; };
  std::erase_if(rows, [&](int64_t n) { return token(n) < 0 || token(n) >= vocabulary; });
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int64_t a, int64_t b) { return token(a) < token(b); });
  return rows;
}

// First adds the rows of a token within each stretch, then these parts, then adds the total to
// dwte.
void add_in_order(const Sizes& s, const std::vector<int32_t>& tokens, const std::vector<float>& dx,
                  std::vector<float>* dwte) {
  const std::vector<int64_t> rows = sorted_rows(tokens, s.vocabulary);
  const auto token = [&](size_t k) { return tokens[static_cast<size_t>(rows[k])]; };
  for (int64_t c = 0; c < s.channels; ++c) {
    float total = 0, part = 0;
    bool first_part = true;
    for (size_t k = 0; k < rows.size(); ++k) {
      part += dx[static_cast<size_t>(rows[k] * s.channels + c)];
      const bool ends = k + 1 == rows.size() || token(k + 1) != token(k);
      if (!ends && (k + 1) % kStretch != 0) continue;
      total = first_part ? part : total + part;
      part = 0, first_part = ends;
      if (ends) (*dwte)[static_cast<size_t>(token(k) * s.channels + c)] += total;
    }
  }
}

// So far apart in magnitude that the order of a sum changes its bits.
std::vector<float> spread_values(int64_t count) {
  std::vector<float> values = random_values<float>(count, 1);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] *= std::exp2(8 * static_cast<float>(random_value(2, i)));
  return values;
}

std::vector<float> device_dwte(const Sizes& s, const std::vector<int32_t>& tokens,
                               const std::vector<float>& dx, const std::vector<float>& start) {
  Stream stream;
  const cuda::Context context{.stream = stream};
  const DeviceArray<int32_t> tokens_n(tokens);
  const DeviceArray<float> dx_nc(dx), dwte(start), dwpe(static_cast<size_t>(s.rows * s.channels));
  EmbeddingBackward args;
  args.dwte_vc = {dwte.data(), DType::fp32, {s.vocabulary, s.channels}};
  args.dwpe_tc = {dwpe.data(), DType::fp32, {s.rows, s.channels}};
  args.dx_btc = {dx_nc.data(), DType::fp32, {1, s.rows, s.channels}};
  args.tokens_bt = {tokens_n.data(), DType::int32, {1, s.rows}};
  const Workspace workspace(cuda::workspace_bytes<float>(args, context));
  cuda::run<float>(args, context, workspace.tensor);
  stream.wait();
  return dwte.values();
}

void expect_the_order(const Sizes& s, const std::vector<int32_t>& tokens) {
  SCOPED_TRACE(fmt::format("{} rows, {} tokens", s.rows, s.vocabulary));
  const std::vector<float> dx = spread_values(s.rows * s.channels);
  const std::vector<float> start = random_values<float>(s.vocabulary * s.channels, 3);
  std::vector<float> expected = start;
  add_in_order(s, tokens, dx, &expected);
  expect_same_bits(device_dwte(s, tokens, dx, start), expected, "dwte");
}

// u^power of the vocabulary: with a higher power, frequent tokens are more frequent.
std::vector<int32_t> tokens_of(const Sizes& s, double power) {
  std::vector<int32_t> tokens(static_cast<size_t>(s.rows));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const double u = (random_value(4, i) + 1) / 2;
    tokens[i] = static_cast<int32_t>(std::pow(u, power) * static_cast<double>(s.vocabulary));
  }
  return tokens;
}

// Rows that fill less than a tile of the sort, exactly one, slightly more, and many; tokens of one
// to three digits, and of just one more.
const Sizes kSizes[] = {{1, 3, 2},      {33, 2, 300},     {1024, 2, 65},    {1025, 8, 255},
                        {3000, 2, 256}, {5000, 8, 50257}, {4500, 2, 70000}, {2100, 1, 1 << 16}};

TEST(EmbeddingOrder, IsThatOfTheTokensAndThenOfTheRows) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  for (const Sizes& s : kSizes)
    for (double power : {1.0, 6.0}) expect_the_order(s, tokens_of(s, power));
}

// Hundreds of stretches of one token: sums of parts of parts.
TEST(EmbeddingOrder, HoldsWhereOneTokenIsFrequent) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  const Sizes s{6000, 2, 50};
  expect_the_order(s, std::vector<int32_t>(6000, 7));
  for (int period : {2, 3, 40}) {
    std::vector<int32_t> tokens = tokens_of(s, 1);
    for (size_t i = 0; i < tokens.size(); ++i)
      if (i % static_cast<size_t>(period) != 0) tokens[i] = 20;
    expect_the_order(s, tokens);
  }
}

TEST(EmbeddingOrder, LeavesOutTokensOutsideTheVocabulary) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  for (int64_t vocabulary : {60, 255, 256}) {
    const Sizes s{3000, 3, vocabulary};
    std::vector<int32_t> tokens = tokens_of(s, 1);
    for (size_t i = 0; i < tokens.size(); i += 5)
      tokens[i] = i % 2 ? -1 - static_cast<int32_t>(i) : static_cast<int32_t>(vocabulary + i / 9);
    tokens[1] = INT32_MAX, tokens[2] = INT32_MIN;
    expect_the_order(s, tokens);
    expect_the_order(s, std::vector<int32_t>(3000, static_cast<int32_t>(vocabulary)));
  }
}

// Four digits.
TEST(EmbeddingOrder, HoldsInTheLargestVocabularies) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  const Sizes s{1500, 1, (1 << 24) + 9};
  expect_the_order(s, tokens_of(s, 1));
}

// Otherwise the tests above could not distinguish orders.
TEST(EmbeddingOrder, ChangesBits) {
  const Sizes s{3000, 4, 50};
  const std::vector<float> dx = spread_values(s.rows * s.channels);
  std::vector<int32_t> tokens = tokens_of(s, 1);
  std::vector<float> forth(200), back(200), backwards(dx.size());
  for (int64_t n = 0; n < s.rows; ++n)
    std::copy_n(dx.begin() + n * s.channels, s.channels,
                backwards.begin() + (s.rows - 1 - n) * s.channels);
  add_in_order(s, tokens, dx, &forth);
  std::reverse(tokens.begin(), tokens.end());
  add_in_order(s, tokens, backwards, &back);
  size_t same = 0;
  for (size_t i = 0; i < forth.size(); ++i) same += forth[i] == back[i];
  EXPECT_LT(same, forth.size() / 4);
}

}  // namespace
}  // namespace lathe::testing
