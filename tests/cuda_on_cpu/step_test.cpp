// Whole training steps of small models on the CUDA device, in a hundred orders of everything that a
// GPU may reorder: the same bits each time, and the host never waits in between.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cuda_on_cpu/runtime.h"
#include "src/train.h"
#include "tests/model/harness.h"

namespace lathe::testing {
namespace {

constexpr uint64_t kSeeds = 100;
constexpr int64_t kMicroSteps = 2;
constexpr int kSteps = 3;  // run, recorded, replayed

struct Case {
  const char* name;
  ModelConfig config;
  DType dtype;
  Recompute recompute;
};

const ModelConfig kBiased{.n_layer = 1,
                          .n_head = 2,
                          .n_embd = 32,
                          .vocab_size = 61,
                          .seq_len = 9,
                          .bias = true,
                          .dropout = 0.2f,
                          .gelu = Gelu::tanh};
const ModelConfig kUnbiased{.n_layer = 2,
                            .n_head = 1,
                            .n_embd = 24,
                            .vocab_size = 33,
                            .seq_len = 5,
                            .bias = false,
                            .dropout = 0,
                            .gelu = Gelu::exact};

std::vector<char> bytes_of(Device& device, const Tensor& tensor) {
  std::vector<char> bytes(tensor.bytes());
  device.download(bytes.data(), tensor);
  return bytes;
}

struct Outcome {
  std::vector<double> losses;
  std::vector<char> masters, m, v, weights;
  bool operator==(const Outcome&) const = default;
};

// Uploads all that a step needs, enqueues the step, and collects the results of the step before.
Outcome train(const Case& c, uint64_t seed, int64_t* waits = nullptr, int64_t* launches = nullptr) {
  cuda_on_cpu::set_seed(seed);
  Harness h(c.config, {.dtype = c.dtype,
                       .batch_size = 2,
                       .seq_len = c.config.seq_len,
                       .micro_steps = kMicroSteps,
                       .recompute = c.recompute});
  Outcome outcome;
  for (uint32_t step = 0; step < kSteps; ++step) {
    const cuda_on_cpu::Counters before = cuda_on_cpu::counters();
    for (int64_t m = 0; m < kMicroSteps; ++m) {
      h.inputs[static_cast<size_t>(m)] = {.seed = 3,
                                          .first_sequence = static_cast<uint64_t>(2 * m),
                                          .step = step,
                                          .learning_rate = 1e-2f};
    }
    h.state.begin(h.model.ops(), h.inputs);
    h.random_batch(5);
    h.trainer.clocks[0].begin();
    h.device->replay(0, [&h] { enqueue_step(h.trainer, 0); });
    h.state.request_results();
    const cuda_on_cpu::Counters after = cuda_on_cpu::counters();
    if (waits) *waits = after.host_synchronizations - before.host_synchronizations;
    if (launches) *launches = after.launches - before.launches;
    if (step > 0) outcome.losses.push_back(h.state.collect_results().loss);
  }
  outcome.losses.push_back(h.state.collect_results().loss);
  outcome.masters = bytes_of(*h.device, h.masters());
  outcome.m = bytes_of(*h.device, h.optimizer.m());
  outcome.v = bytes_of(*h.device, h.optimizer.v());
  outcome.weights = bytes_of(*h.device, h.parameters.weights().flat);
  return outcome;
}

class CudaStep : public ::testing::TestWithParam<Case> {};

TEST_P(CudaStep, IsTheSameInEveryOrder) {
  const Outcome first = train(GetParam(), 0);
  ASSERT_EQ(first.losses.size(), static_cast<size_t>(kSteps));
  EXPECT_LT(first.losses.back(), first.losses.front());
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    const Outcome other = train(GetParam(), seed);
    ASSERT_EQ(other.losses, first.losses) << "seed " << seed;
    ASSERT_TRUE(other == first) << "seed " << seed;
  }
}

TEST_P(CudaStep, NeverWaitsAndIsOneLaunchOnceItIsRecorded) {
  int64_t waits = -1, launches = -1;
  train(GetParam(), 7, &waits, &launches);
  EXPECT_EQ(waits, 0);
  // The graph, and begin_step.
  EXPECT_LE(launches, 2);
}

INSTANTIATE_TEST_SUITE_P(
    Models, CudaStep,
    ::testing::Values(Case{"biased_bf16", kBiased, DType::bf16, Recompute::none},
                      Case{"unbiased_bf16_block", kUnbiased, DType::bf16, Recompute::block},
                      Case{"biased_fp32", kBiased, DType::fp32, Recompute::layernorm}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lathe::testing
