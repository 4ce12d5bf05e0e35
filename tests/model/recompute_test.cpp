// What the backward pass recomputes equals what the forward pass computed, bit for bit.
#include <gtest/gtest.h>

#include <map>

#include "kernels/observed_ops.h"
#include "tests/model/harness.h"

namespace lathe::testing {
namespace {

constexpr Recompute kLevels[] = {Recompute::gelu, Recompute::layernorm, Recompute::block};

struct Case {
  const char* name;
  ModelConfig config;
  int64_t batch_size, micro_steps;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

std::vector<char> bytes_of(Device& device, const Tensor& tensor) {
  std::vector<char> bytes(tensor.bytes());
  device.download(bytes.data(), tensor);
  return bytes;
}

// Everything that two steps leave behind, by name.
using Trace = std::map<std::string, std::vector<char>>;
Trace two_steps(const Case& c, DType dtype, Recompute recompute, const Offload& offload = {}) {
  Harness h(c.config, {.dtype = dtype,
                       .batch_size = c.batch_size,
                       .seq_len = c.config.seq_len,
                       .micro_steps = c.micro_steps,
                       .recompute = recompute,
                       .offload = offload});
  Trace trace;
  for (uint32_t step = 0; step < 2; ++step) {
    const auto keep = [&](const char* name, const Tensor& tensor) {
      trace[fmt::format("{} of step {}", name, step)] = bytes_of(*h.device, tensor);
    };
    for (int64_t m = 0; m < c.micro_steps; ++m) {
      h.inputs[m].step = step;
      h.inputs[m].first_sequence = static_cast<uint64_t>(m * c.batch_size);
    }
    h.state.begin(h.model.ops(), h.inputs);
    for (int64_t m = 0; m < c.micro_steps; ++m) {
      h.random_batch(100 * step + static_cast<uint64_t>(m));
      h.model.forward(h.batch(m), true);
      h.model.loss_and_backward(h.batch(m), 1e-2, h.state.device_results(), m > 0);
    }
    keep("gradients", h.parameters.gradients().flat);
    h.optimizer.step(h.model.ops(), h.state);
    const StepResults results = h.state.results();
    EXPECT_EQ(results.skip, 0);
    const char* raw = reinterpret_cast<const char*>(&results);
    trace[fmt::format("results of step {}", step)].assign(raw, raw + sizeof(results));
    keep("weights", h.parameters.weights().flat);
    keep("masters", h.masters());
    keep("m", h.optimizer.m());
    keep("v", h.optimizer.v());
  }
  return trace;
}

class RecomputeTest : public ::testing::TestWithParam<std::tuple<Case, DType>> {};

TEST_P(RecomputeTest, EveryLevelGivesTheSameBits) {
  const auto& [c, dtype] = GetParam();
  const Trace whole = two_steps(c, dtype, Recompute::none);
  const auto compare = [&](const Trace& again, std::string_view level) {
    ASSERT_EQ(again.size(), whole.size());
    for (const auto& [name, bytes] : whole)
      EXPECT_TRUE(again.at(name) == bytes) << name << " at " << level;
  };
  for (const Recompute recompute : kLevels)
    compare(two_steps(c, dtype, recompute), name_of(recompute));
  compare(two_steps(c, dtype, Recompute::block, {.states = StatesPlace::pinned, .inputs = true}),
          "block, offloaded");
}

constexpr ModelConfig sizes(int64_t n_layer, int64_t n_head, int64_t n_embd, int64_t seq_len,
                            bool bias, float dropout, Gelu gelu) {
  return {.n_layer = n_layer,
          .n_head = n_head,
          .n_embd = n_embd,
          .vocab_size = 97,
          .seq_len = seq_len,
          .bias = bias,
          .dropout = dropout,
          .gelu = gelu};
}
const auto kDTypes = ::testing::Values(DType::fp32, DType::bf16);
const auto name_of_case = [](const auto& info) {
  return std::string(std::get<0>(info.param).name) + "_" +
         std::string(name_of(std::get<1>(info.param)));
};
// A first, a middle and a last layer; several micro-steps; widths that kernels process in eights,
// and others.
INSTANTIATE_TEST_SUITE_P(
    Small, RecomputeTest,
    ::testing::Combine(
        ::testing::Values(Case{"one_layer", sizes(1, 1, 7, 3, true, 0, Gelu::tanh), 2, 1},
                          Case{"dropout", sizes(3, 3, 33, 9, true, 0.2f, Gelu::exact), 2, 2},
                          Case{"no_biases", sizes(3, 2, 32, 17, false, 0.1f, Gelu::tanh), 1, 2}),
        kDTypes),
    name_of_case);
// Larger models for the CPU, which has other matrix products for them.
INSTANTIATE_TEST_SUITE_P(
    Large, RecomputeTest,
    ::testing::Combine(
        ::testing::Values(Case{"no_dropout", sizes(7, 2, 34, 65, false, 0, Gelu::tanh), 1, 3},
                          Case{"neither", sizes(2, 5, 65, 5, false, 0.5f, Gelu::tanh), 5, 1},
                          Case{"wide", sizes(3, 2, 128, 64, true, 0.1f, Gelu::tanh), 4, 2},
                          Case{"biases_alone", sizes(5, 1, 40, 33, true, 0, Gelu::exact), 2, 2}),
        kDTypes),
    name_of_case);

OpCost cost_of_a_micro_step(const ModelConfig& config, int64_t batch_size, Recompute recompute) {
  Harness h(config, {.batch_size = batch_size, .seq_len = config.seq_len, .recompute = recompute});
  const RecordingOps recorder(h.model.ops());
  h.model.use(recorder);
  h.model.forward(h.batch(), true);
  h.model.loss_and_backward(h.batch(), 1, h.state.device_results(), false);
  return recorder.total();
}

TEST(Recompute, OnlyBlockAddsProducts) {
  const ModelConfig config = sizes(4, 3, 33, 17, true, 0.1f, Gelu::tanh);
  const int64_t b = 3;
  const OpCost none = cost_of_a_micro_step(config, b, Recompute::none);
  const OpCost gelu = cost_of_a_micro_step(config, b, Recompute::gelu);
  const OpCost layernorm = cost_of_a_micro_step(config, b, Recompute::layernorm);
  const OpCost block = cost_of_a_micro_step(config, b, Recompute::block);
  EXPECT_EQ(gelu.flops, none.flops);
  EXPECT_EQ(layernorm.flops, none.flops);
  // qkv, attention, its projection, and the first half of the MLP, of all layers but the last.
  const double n = static_cast<double>(b * config.seq_len), c = static_cast<double>(config.n_embd);
  const double t = static_cast<double>(config.seq_len), again = 3;
  EXPECT_DOUBLE_EQ(block.flops - none.flops, again * (2 * n * c * (3 + 1 + 4) * c + 2 * n * c * t));
  // Bytes: gelu is read as pre_gelu and written; so are the two residuals and LayerNorms.
  const double four_c = n * 4 * c * sizeof(float);
  EXPECT_DOUBLE_EQ(gelu.bytes - none.bytes, again * 2 * four_c);
  const double statistics = 2 * n * sizeof(float), weights = 2 * c * sizeof(float);
  EXPECT_DOUBLE_EQ(layernorm.bytes - gelu.bytes,
                   again * 2 * (2 * n * c * sizeof(float) + statistics + weights));
}

}  // namespace
}  // namespace lathe::testing
