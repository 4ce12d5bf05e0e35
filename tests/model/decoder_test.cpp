#include "src/model/decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/model/harness.h"
#include "tests/tolerance.h"

namespace lathe::testing {
namespace {

const ModelConfig kConfig{.n_layer = 3, .n_head = 3, .n_embd = 48, .vocab_size = 61, .seq_len = 24};

// Logits after each prefix of `tokens`, fed in pieces of `piece` tokens.
template <typename T>
std::vector<std::vector<double>> logits_in_pieces(DType dtype, const std::vector<int32_t>& tokens,
                                                  size_t piece, int64_t chunk) {
  Harness h(kConfig, {.dtype = dtype, .batch_size = 1, .seq_len = 4});
  Arena arena(*h.device, Sampler::plan(kConfig, dtype, chunk, *h.device).total());
  Decoder decoder(kConfig, h.parameters, kConfig.seq_len, chunk, *h.device, arena);
  std::vector<std::vector<double>> result;
  for (size_t i = 0; i + piece <= tokens.size(); i += piece) {
    const auto logits = decoder.append(std::span(tokens).subspan(i, piece));
    result.emplace_back(logits.begin(), logits.end());
  }
  return result;
}

// With the cache (one token at a time) the logits equal those without it (the whole prefix at
// once): up to rounding in double; in fp32 and bf16 both ways are equally close to double, by the
// same rule.
TEST(Decoder, TheCacheChangesNothing) {
  std::vector<int32_t> tokens(kConfig.seq_len);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 17 % 61);
  const auto exact = logits_in_pieces<double>(DType::fp64, tokens, 24, 24).back();
  const auto exact_cached = logits_in_pieces<double>(DType::fp64, tokens, 1, 1).back();
  for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(exact[i], exact_cached[i], 1e-12);

  const auto check = [&]<typename T>(T, DType dtype) {
    const auto whole = logits_in_pieces<T>(dtype, tokens, 24, 24).back();
    for (const auto& [piece, chunk] : std::map<size_t, int64_t>{{1, 1}, {6, 4}, {12, 12}}) {
      const auto cached = logits_in_pieces<T>(dtype, tokens, piece, chunk).back();
      EXPECT_TRUE(is_close<T>(std::vector<T>(cached.begin(), cached.end()), exact,
                              std::vector<T>(whole.begin(), whole.end())))
          << name_of(dtype) << " in pieces of " << piece;
    }
  };
  check(float{}, DType::fp32);
}

TEST(Decoder, ResetForgets) {
  Harness h(kConfig, {.dtype = DType::fp32, .batch_size = 1, .seq_len = 4});
  Arena arena(*h.device, Sampler::plan(kConfig, DType::fp32, 4, *h.device).total());
  Decoder decoder(kConfig, h.parameters, kConfig.seq_len, 4, *h.device, arena);
  const std::vector<int32_t> a{1, 2, 3}, b{9, 8, 7, 6, 5};
  const auto first = decoder.append(a);
  const std::vector<double> before(first.begin(), first.end());
  decoder.append(b);
  decoder.reset();
  const auto again = decoder.append(a);
  EXPECT_EQ(before, std::vector<double>(again.begin(), again.end()));
  EXPECT_THROW(decoder.append(std::vector<int32_t>(kConfig.seq_len)), CheckError);
}

TEST(SampleToken, GreedyTakesTheFirstLargest) {
  const std::vector<double> logits{1, 3, 2, 3};
  EXPECT_EQ(sample_token(logits, {.temperature = 0}, 5), 1);
  EXPECT_EQ(sample_token(logits, {.temperature = 1, .top_k = 1}, 5), 1);
}

TEST(SampleToken, DrawsByTheDistribution) {
  const std::vector<double> logits{std::log(0.1), std::log(0.2), std::log(0.7)};
  const auto frequencies = [&](SamplingConfig config) {
    std::vector<double> count(3);
    const int64_t draws = 20000;
    for (int64_t i = 0; i < draws; ++i) count[sample_token(logits, config, i)] += 1.0 / draws;
    return count;
  };
  const auto all = frequencies({.seed = 3});
  EXPECT_NEAR(all[0], 0.1, 0.01);
  EXPECT_NEAR(all[1], 0.2, 0.012);
  const auto two = frequencies({.top_k = 2, .seed = 3});
  EXPECT_EQ(two[0], 0);
  EXPECT_NEAR(two[1], 0.2 / 0.9, 0.012);
  const auto nucleus = frequencies({.top_p = 0.65, .seed = 3});
  EXPECT_NEAR(nucleus[2], 1, 1e-9);
  const auto hot = frequencies({.temperature = 0.5, .seed = 3});
  EXPECT_NEAR(hot[1], 0.04 / (0.01 + 0.04 + 0.49), 0.01);
}

TEST(SampleToken, IsAFunctionOfSeedAndPosition) {
  std::vector<double> logits(50);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<double>(i));
  int differences = 0;
  for (int64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(sample_token(logits, {.seed = 1}, i), sample_token(logits, {.seed = 1}, i));
    differences += sample_token(logits, {.seed = 1}, i) != sample_token(logits, {.seed = 2}, i);
  }
  EXPECT_GT(differences, 25);
}

}  // namespace
}  // namespace lathe::testing
