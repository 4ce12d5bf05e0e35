// The two kernels of cross_entropy_rows give the same bits, and those of a softmax.
#include "kernels/cuda/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/device/device.h"
#include "tests/cuda/device_memory.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

constexpr size_t kHopper = 227 * 1024, kAmpere = 163 * 1024;  // shared memory of a block
constexpr double kScale = 1.0 / 37;

struct Sizes {
  int64_t rows, vocabulary, padded;
};

size_t shared_bytes_of_gpu() {
  cudaDeviceProp properties{};
  cuda::check_cuda(cudaGetDeviceProperties(&properties, 0), "GPU");
  return properties.sharedMemPerBlockOptin;
}

std::vector<float> random_logits(const Sizes& s, double magnitude) {
  return random_values<float>(s.rows * s.padded, 1, magnitude);
}
// All over the vocabulary, with some ignored.
std::vector<int32_t> targets_of(const Sizes& s) {
  std::vector<int32_t> targets = random_tokens(s.rows, 2, s.vocabulary);
  targets[0] = static_cast<int32_t>(s.vocabulary - 1);
  if (s.rows > 2) targets[1] = 0, targets[2] = -1;
  return targets;
}

// The device's data before and after.
template <typename KernelT>
struct Call {
  Sizes s;
  Stream stream;
  DeviceArray<float> logits, losses;
  DeviceArray<int32_t> targets;
  cuda::Context context;

  Call(const Sizes& sizes, const std::vector<float>& values, const std::vector<int32_t>& wanted,
       size_t shared_bytes, size_t offset = 0)
      : s(sizes),
        logits(values, offset),
        losses(static_cast<size_t>(sizes.rows)),
        targets(wanted),
        context{.stream = stream, .multiprocessors = 3, .shared_bytes_of_block = shared_bytes} {}

  cuda::CrossEntropyRows args(bool gradient = true) const {
    return {logits.data(), losses.data(), targets.data(), s.rows,
            s.vocabulary,  s.padded,      kScale,         gradient};
  }
  void run(bool gradient = true) const {
    cuda::cross_entropy_rows<KernelT>(args(gradient), context);
    stream.wait();
  }
};

template <typename KernelT>
void expect_the_same_bits(const Sizes& s, const std::vector<float>& logits,
                          const std::vector<int32_t>& targets) {
  SCOPED_TRACE(fmt::format("{} rows of {} of {}", s.rows, s.vocabulary, s.padded));
  const size_t shared_bytes = shared_bytes_of_gpu();
  const Call<KernelT> resident(s, logits, targets, shared_bytes), streamed(s, logits, targets, 0);
  if (!cuda::rows_are_resident(resident.args(), resident.context)) {
    EXPECT_LT(shared_bytes, kHopper);
    return;
  }
  EXPECT_FALSE(cuda::rows_are_resident(streamed.args(), streamed.context));
  resident.run();
  streamed.run();
  expect_same_bits(resident.losses.values(), streamed.losses.values(), "losses");
  expect_same_bits(resident.logits.values(), streamed.logits.values(), "gradient");
  const Call<KernelT> alone(s, logits, targets, shared_bytes);
  alone.run(false);
  expect_same_bits(alone.losses.values(), resident.losses.values(), "losses without gradient");
  expect_same_bits(alone.logits.values(), logits, "logits without gradient");
}

// More rows than blocks, so that rows follow one another in shared memory; whole rounds, and
// vocabularies that end within a round, a vector, or the padding; the longest row that fits.
const Sizes kLong[] = {{7, 50257, 50304}, {4, 16384, 16384}, {5, 24577, 32768},
                       {2, 16383, 16388}, {4, 58001, 58096}, {1, 40961, 40964}};

TEST(CrossEntropyRows, ResidentAndStreamedRowsGiveTheSameBits) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  for (const Sizes& s : kLong) {
    const std::vector<float> logits = random_logits(s, 12);
    expect_the_same_bits<float>(s, logits, targets_of(s));
    expect_the_same_bits<__nv_bfloat16>(s, logits, targets_of(s));
  }
}

TEST(CrossEntropyRows, TheSameBitsWhereValuesAreNotFinite) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  const Sizes s{6, 20001, 20004};
  std::vector<float> logits = random_logits(s, 3);
  const auto row = [&](int64_t r) { return logits.begin() + r * s.padded; };
  *(row(0) + 17000) = NAN;
  *(row(2) + 5) = NAN;  // ignored
  *(row(3) + 9000) = INFINITY;
  std::fill(row(4), row(5), -INFINITY);
  *(row(4) + 100) = 2, *(row(4) + 19999) = 2;
  std::fill(row(5), row(5) + s.vocabulary, -INFINITY);
  std::vector<int32_t> targets = targets_of(s);
  targets[4] = 100;
  for (int32_t second : {0, 20001, 30000}) {
    targets[1] = second;
    expect_the_same_bits<float>(s, logits, targets);
    expect_the_same_bits<__nv_bfloat16>(s, logits, targets);
  }
  for (size_t shared_bytes : {shared_bytes_of_gpu(), size_t{0}}) {
    const Call<float> call(s, logits, targets, shared_bytes);
    call.run();
    const std::vector<float> losses = call.losses.values(), gradient = call.logits.values();
    for (int64_t nan : {0, 1, 3, 5})
      EXPECT_TRUE(std::isnan(losses[static_cast<size_t>(nan)])) << nan;
    EXPECT_EQ(losses[2], 0);
    EXPECT_FLOAT_EQ(losses[4], std::log(2.0f));
    for (int64_t v = 0; v < s.padded; ++v) {
      ASSERT_TRUE(std::isnan(gradient[static_cast<size_t>(v)])) << v;
      ASSERT_EQ(gradient[static_cast<size_t>(2 * s.padded + v)], 0) << v;
      const auto share = static_cast<float>(v == 100 ? -kScale / 2 : v == 19999 ? kScale / 2 : 0);
      ASSERT_FLOAT_EQ(gradient[static_cast<size_t>(4 * s.padded + v)], share) << v;
    }
  }
}

// An A100 holds rows of up to 41,712 logits; without opt-in a block holds none of these.
TEST(CrossEntropyRows, AreResidentWhereTheyFit) {
  const auto resident = [](int64_t padded, size_t shared_bytes, size_t offset = 0,
                           bool gradient = true) {
    alignas(16) float place[8];
    const cuda::CrossEntropyRows args{place + offset, nullptr, nullptr, 1, 9, padded, 1, gradient};
    return cuda::rows_are_resident(args, {.shared_bytes_of_block = shared_bytes});
  };
  EXPECT_TRUE(resident(50304, kHopper));
  EXPECT_TRUE(resident(58096, kHopper));
  EXPECT_FALSE(resident(58100, kHopper));
  EXPECT_FALSE(resident(50304, kAmpere));
  EXPECT_TRUE(resident(32768, kAmpere));
  EXPECT_FALSE(resident(1024, kHopper));       // stays in L2
  EXPECT_FALSE(resident(70000, 1024 * 1024));  // more than kRounds
  EXPECT_FALSE(resident(50303, kHopper));      // rows are not aligned
  EXPECT_FALSE(resident(50304, kHopper, 1));
  EXPECT_FALSE(resident(50304, kHopper, 0, false));
}

// Softmax and loss of one row in A, by a plain implementation.
template <typename A>
void plain_row(const float* logits, int32_t target, const Sizes& s, A* loss, A* gradient) {
  A top = -INFINITY, sum = 0;
  for (int64_t v = 0; v < s.vocabulary; ++v) top = std::max(top, static_cast<A>(logits[v]));
  for (int64_t v = 0; v < s.vocabulary; ++v) sum += std::exp(static_cast<A>(logits[v]) - top);
  *loss = top + std::log(sum) - static_cast<A>(logits[target]);
  for (int64_t v = 0; v < s.padded; ++v) {
    gradient[v] = 0;
    if (v >= s.vocabulary) continue;
    const A p = std::exp(static_cast<A>(logits[v]) - top) / sum;
    gradient[v] = (v == target ? p - 1 : p) * static_cast<A>(kScale);
  }
}

template <typename T, typename KernelT>
void compare(double magnitude, size_t shared_bytes) {
  SCOPED_TRACE(fmt::format("times {}, {} bytes", magnitude, shared_bytes));
  const Sizes s{3, 50257, 50304};
  const std::vector<float> logits = random_logits(s, magnitude);
  const std::vector<int32_t> targets = random_tokens(s.rows, 5, s.vocabulary);
  const Call<KernelT> call(s, logits, targets, shared_bytes);
  call.run();
  const std::vector<float> after = call.logits.values();
  std::vector<float> losses(3), row(static_cast<size_t>(s.padded));
  std::vector<double> exact_losses(3), exact(row.size());
  for (size_t r = 0; r < 3; ++r) {
    const float* of = logits.data() + static_cast<int64_t>(r) * s.padded;
    plain_row(of, targets[r], s, &losses[r], row.data());
    plain_row(of, targets[r], s, &exact_losses[r], exact.data());
    const auto* written =
        reinterpret_cast<const T*>(after.data() + static_cast<int64_t>(r) * s.padded);
    expect_close<T>({written, written + s.padded}, exact, converted<T>(row), "gradient");
  }
  expect_close<float>(call.losses.values(), exact_losses, losses, "losses");
}

TEST(CrossEntropyRows, ObeyTheToleranceRule) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  for (size_t shared_bytes : {shared_bytes_of_gpu(), size_t{0}}) {
    for (double magnitude : {1.0, 30.0, 1e4}) {
      compare<float, float>(magnitude, shared_bytes);
      compare<bf16, __nv_bfloat16>(magnitude, shared_bytes);
    }
  }
}

}  // namespace
}  // namespace lathe::testing
