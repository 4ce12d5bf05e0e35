// Linear + cross-entropy over more rows than one chunk holds, without millions of logits.
#include <gtest/gtest.h>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/operations.h"
#include "kernels/device/device.h"
#include "tests/cuda/device_memory.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

constexpr int64_t kRows = 300, kChannels = 24, kVocabulary = 37, kPadded = 48;

// One call with its operands, at T's device addresses.
template <typename T>
struct Call {
  using A = Accumulator<T>;
  Buffer<T> x{{kRows, kChannels}, random_values<T>(kRows* kChannels, 1)};
  Buffer<T> wte{{kPadded, kChannels}, random_values<T>(kPadded* kChannels, 2)};
  Buffer<int32_t> targets{{kRows}, random_tokens(kRows, 3, kVocabulary)};
  Buffer<A> losses{{kRows}}, dwte{{kPadded, kChannels}};
  Buffer<T> dx{{kRows, kChannels}};
  Visible<StepResults> results;

  LinearCrossEntropy args() const {
    LinearCrossEntropy a;
    a.losses_n = losses.tensor, a.dx_nc = dx.tensor, a.dwte_vc = dwte.tensor;
    a.x_nc = x.tensor, a.wte_vc = wte.tensor, a.targets_n = targets.tensor;
    a.vocab_size = kVocabulary, a.scale = 1.0 / kRows, a.results = results.get();
    a.logits_at_once = 128 * kPadded;  // three chunks
    return a;
  }
};

// The CPU's operation in T, and in double from the same values.
template <typename T>
void run_on_cpu(Call<T>& call) {
  const Ops& table = cpu().ops(dtype_of<T>);
  table.run(call.args(), workspace_for(table, call.args()).tensor);
}

template <typename T, typename KernelT>
void compare() {
  Stream stream;
  cuda::Matmul matmul({.autotune = false});
  cuda::Context context{.stream = stream, .matmul = &matmul};
  Call<T> ours, plain;
  Call<double> reference;
  const auto x = converted<double>(ours.x.values()), wte = converted<double>(ours.wte.values());
  std::copy(x.begin(), x.end(), reference.x.data());
  std::copy(wte.begin(), wte.end(), reference.wte.data());
  run_on_cpu(plain);
  run_on_cpu(reference);

  const size_t bytes = cuda::workspace_bytes<KernelT>(ours.args(), context);
  const size_t logits = 128 * kPadded * sizeof(float);
  EXPECT_EQ(bytes, logits + cuda::Matmul::kWorkspaceBytes);
  const Workspace workspace(bytes);
  {
    const OnDevice<LinearCrossEntropy> on(ours.args(), workspace.tensor);
    cuda::run<KernelT>(on.there.args, context, on.there.workspace);
    stream.wait();
  }
  expect_close<float>(ours.losses.values(), reference.losses.values(), plain.losses.values(),
                      "losses");
  expect_close<T>(ours.dx.values(), reference.dx.values(), plain.dx.values(), "dx");
  expect_close<float>(ours.dwte.values(), reference.dwte.values(), plain.dwte.values(), "dwte");
  const auto loss = [](const auto& call) { return static_cast<float>(call.results->loss); };
  expect_close<float>({loss(ours)}, {reference.results->loss}, {loss(plain)}, "loss");
}

TEST(CrossEntropyChunks, ObeyTheToleranceRule) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  compare<float, float>();
  compare<bf16, __nv_bfloat16>();
}

}  // namespace
}  // namespace lathe::testing
