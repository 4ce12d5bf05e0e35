// CPU-only promises of attention; tests/ops tests the operation itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/threads.h"
#include "kernels/philox.h"
#include "tests/allocations.h"

namespace lathe {
namespace {

template <typename T>
Tensor tensor_of(std::vector<T>& values, Shape shape) {
  return Tensor{values.data(), dtype_of<T>, shape};
}

// Values in [-1, 1).
template <typename T>
std::vector<T> random_values(int64_t n, uint64_t seed) {
  std::vector<T> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>(static_cast<Accumulator<T>>(
        static_cast<double>(philox(seed, i, 0, 0)[0]) / 2147483648.0 - 1.0));
  return values;
}

// Forward and backward of B sequences of T tokens, and a step with a cache. Nothing may be
// allocated while they run.
template <typename T>
std::vector<unsigned char> results(int64_t B, int64_t tokens, int64_t H, int64_t D) {
  const int64_t C = H * D;
  const StepInputs inputs{.seed = 9, .first_sequence = 3, .step = 11};
  const Dropout dropout{0.1f, 5, DropoutSite::attention, &inputs};
  auto qkv = random_values<T>(B * tokens * 3 * C, 20), dout = random_values<T>(B * tokens * C, 21);
  std::vector<T> out(dout.size()), dqkv(qkv.size()), cached(out.size());
  std::vector<T> keys(out.size()), values(out.size());
  std::vector<Accumulator<T>> logsumexp(static_cast<size_t>(B * H * tokens));
  std::vector<Accumulator<T>> sums(static_cast<size_t>(3 * C));
  const Tensor qkv_t = tensor_of(qkv, {B, tokens, 3 * C}), out_t = tensor_of(out, {B, tokens, C});
  const Tensor logsumexp_t = tensor_of(logsumexp, {B, H, tokens});
  const AttentionForward forward{out_t, logsumexp_t, qkv_t, H, dropout};
  const AttentionBackward backward{tensor_of(dqkv, {B, tokens, 3 * C}),
                                   tensor_of(sums, {3 * C}),
                                   tensor_of(dout, {B, tokens, C}),
                                   out_t,
                                   logsumexp_t,
                                   qkv_t,
                                   H,
                                   dropout};
  const AttentionCached sampling{tensor_of(cached, {B, tokens, C}), tensor_of(keys, {B, tokens, C}),
                                 tensor_of(values, {B, tokens, C}), qkv_t, H};
  cpu::MatmulContext matmul;
  const auto ops = cpu::make_cpu_ops(dtype_of<T>, matmul);
  std::vector<uint8_t> workspace(
      std::max({ops->workspace_bytes(forward), ops->workspace_bytes(backward),
                ops->workspace_bytes(sampling)}));
  const Tensor scratch = tensor_of(workspace, {static_cast<int64_t>(workspace.size())});
  const size_t before = testing::allocated_bytes();
  ops->run(forward, scratch);
  ops->run(backward, scratch);
  ops->run(sampling, scratch);
  EXPECT_EQ(testing::allocated_bytes(), before);

  std::vector<unsigned char> bytes;
  const auto append = [&bytes](const auto& v) {
    const auto* const data = reinterpret_cast<const unsigned char*>(v.data());
    bytes.insert(bytes.end(), data, data + v.size() * sizeof(v[0]));
  };
  append(out), append(dqkv), append(sums), append(logsumexp), append(cached);
  return bytes;
}

template <typename T>
class CpuAttentionOf : public ::testing::Test {};
using AllTypes = ::testing::Types<float, bf16, double>;
TYPED_TEST_SUITE(CpuAttentionOf, AllTypes);

TYPED_TEST(CpuAttentionOf, AnyNumberOfThreadsGivesTheSameBits) {
  const int usual = cpu::max_threads();
  for (const auto& [B, T, H, D] : {std::array<int64_t, 4>{3, 270, 2, 24}, {2, 20, 5, 16}}) {
    cpu::set_max_threads(1);
    const auto one = results<TypeParam>(B, T, H, D);
    for (int threads : {2, 5}) {
      cpu::set_max_threads(threads);
      EXPECT_TRUE(one == results<TypeParam>(B, T, H, D)) << threads;
    }
  }
  cpu::set_max_threads(usual);
}

TYPED_TEST(CpuAttentionOf, AllocatesNothing) {
  results<TypeParam>(1, 1, 1, 64), results<TypeParam>(2, 130, 3, 40);
}

}  // namespace
}  // namespace lathe
