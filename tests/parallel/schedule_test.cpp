// When a step communicates, and what waits for it, read from the order of the calls. The device
// computes nothing, and the other ranks do not exist.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kernels/imagined_device.h"
#include "src/train.h"
#include "tests/parallel/step_model.h"

namespace lathe::testing {
namespace {

constexpr ModelConfig kGpt2{
    .n_layer = 12, .n_head = 12, .n_embd = 768, .vocab_size = 50257, .seq_len = 1024};
constexpr ModelConfig kSmall{
    .n_layer = 5, .n_head = 2, .n_embd = 32, .vocab_size = 61, .seq_len = 16};

struct Case {
  ModelConfig config = kSmall;
  int64_t batch_size = 2, micro_steps = 1;
  int ranks = 4;
  bool sharded = false, reduce_bf16 = false;
  int64_t bucket_elements = 0;
  DType dtype = DType::bf16;
};

// The step of src/train.cpp.
Schedule schedule_of(const Case& c) {
  const std::unique_ptr<Device> cpu = make_cpu_device();
  ImaginedDevice device(*cpu);
  Schedule schedule;
  AbsentRanks ranks(c.ranks, schedule);
  Arena arena(device, kBoundless);
  Trainer trainer(c.config, {},
                  {.dtype = c.dtype,
                   .batch_size = c.batch_size,
                   .seq_len = c.config.seq_len,
                   .micro_steps = c.micro_steps,
                   .bucket_elements = c.bucket_elements,
                   .zero_stage = c.sharded ? 1 : 0,
                   .reduce_bf16 = c.reduce_bf16},
                  device, Mesh(ranks), arena);
  const ScheduleOps ops(trainer.ops(), schedule);
  trainer.use(ops);
  enqueue_step(trainer, 0);
  return schedule;
}

// The operation that writes the last gradient of a bucket: the backward pass of its first matrix or
// LayerNorm. Each layer has four linear_backward and two layernorm_backward, after the head's one.
int64_t last_gradient(const Schedule& s, const ModelConfig& config, const Bucket& bucket) {
  if (bucket.first_layer < 0) return s.only("embedding_backward");
  const std::string first = bucket.name.substr(0, bucket.name.find(' '));
  const size_t above = static_cast<size_t>(config.n_layer - 1 - bucket.first_layer);
  if (first.ends_with("mlp.c_proj")) return s.all("linear_backward").at(4 * above);
  if (first.ends_with("ln_2")) return s.all("layernorm_backward").at(1 + 2 * above);
  if (first.ends_with("attn.c_proj")) return s.all("linear_backward").at(4 * above + 2);
  EXPECT_TRUE(first.ends_with("ln_1")) << bucket.name;
  return s.all("layernorm_backward").at(2 + 2 * above);
}

TEST(Schedule, EachBucketIsReducedWhenItsLastGradientIsThere) {
  for (bool sharded : {false, true}) {
    for (bool reduce_bf16 : {false, true}) {
      Case c{.config = kGpt2, .batch_size = 1, .sharded = sharded, .reduce_bf16 = reduce_bf16};
      c.bucket_elements = int64_t{4} << 20;
      const Schedule s = schedule_of(c);
      const ParameterLayout layout(c.config, {c.ranks, c.bucket_elements});
      EXPECT_EQ(layout.buckets.size(), 20u);
      for (const Bucket& bucket : layout.buckets) {
        const bool scattered = sharded || bucket.first_layer < 0;
        const int64_t issued =
            s.only(scattered ? "reduce_scatter" : "all_reduce", bucket.name.c_str());
        const int64_t final = last_gradient(s, c.config, bucket);
        EXPECT_GT(issued, final) << bucket.name;
        EXPECT_LT(issued, s.next(final, "linear_backward", "layernorm_backward",
                                 "attention_backward", "embedding_backward", "square_sum"))
            << bucket.name;
      }
      // Each collective starts after everything that was enqueued on the device before it.
      for (const auto& [at, entry] : s.collectives())
        EXPECT_GT(s.ordered_after(at), s.operation_before(at)) << entry.kind << " " << entry.what;
    }
  }
}

TEST(Schedule, OnlyTheLastMicroStepCommunicates) {
  const Schedule s = schedule_of({.micro_steps = 3});
  const std::vector<int64_t> heads = s.all("linear_cross_entropy");
  ASSERT_EQ(heads.size(), 3u);
  for (const auto& [at, entry] : s.collectives()) EXPECT_GT(at, heads[2]) << entry.what;
}

TEST(Schedule, AdamWWaitsForAllGradientsAndNothingElseDoes) {
  for (bool sharded : {false, true}) {
    const Schedule s = schedule_of({.sharded = sharded});
    const int64_t last_gradient = s.only("reduce_scatter", "embeddings");
    // The device's first wait after the backward pass is the one before the norm.
    const int64_t wait = s.next(s.only("embedding_backward"), "device_after");
    EXPECT_EQ(s.at(wait).ticket, s.at(last_gradient).ticket);
    EXPECT_LT(wait, s.first("square_sum"));
    EXPECT_LT(s.next(wait, "square_sum"), s.only("clip_scale"));
    EXPECT_LT(s.only("clip_scale"), s.first("adamw"));
    const std::vector<int64_t> backward = s.all("linear_backward");
    for (int64_t at : s.all("device_after")) {
      EXPECT_FALSE(at > s.only("linear_cross_entropy") && at < backward.back()) << at;
    }
    const int64_t norm = s.only("all_reduce", "norm");
    EXPECT_GT(norm, s.all("square_sum").back());
    EXPECT_EQ(s.at(s.next(norm, "device_after")).ticket, s.at(norm).ticket);
    EXPECT_LT(s.next(norm, "device_after"), s.only("clip_scale"));
    // Stage 0: the layers are updated while the embeddings' sums are gathered.
    const std::vector<int64_t> updates = s.all("adamw");
    ASSERT_EQ(updates.size(), sharded ? 1u : 2u);
    if (sharded) continue;
    const int64_t gather = s.only("all_gather", "embeddings");
    EXPECT_GT(gather, norm);
    EXPECT_LT(gather, updates[0]);
    EXPECT_EQ(s.at(s.next(updates[0], "device_after")).ticket, s.at(gather).ticket);
    EXPECT_LT(s.next(updates[0], "device_after"), updates[1]);
  }
}

// ZeRO-1: all gathers are enqueued before the forward pass, in the order in which it needs them,
// and each layer waits only for its own.
TEST(Schedule, LayersWaitForTheirOwnWeights) {
  const Schedule s = schedule_of({.sharded = true});
  const std::vector<int64_t> gathers = s.all("all_gather");
  ASSERT_EQ(gathers.size(), 21u);  // four parts per layer
  EXPECT_LT(gathers.back(), s.first("embedding_forward"));
  const std::vector<int64_t> waits = s.all("device_after");
  for (size_t l = 0; l <= 5; ++l) EXPECT_EQ(s.at(waits[l]).ticket, s.at(gathers[4 * l]).ticket);
  EXPECT_EQ(s.at(gathers[0]).what, "embeddings");
  EXPECT_EQ(s.at(gathers[4]).what, "h.0.mlp.c_proj");
  EXPECT_EQ(s.at(gathers[20]).what, "h.4.mlp.c_proj to ln_f");
  // The embedding, then the first LayerNorm of each layer.
  EXPECT_EQ(s.next(waits[0]), s.first("embedding_forward"));
  const std::vector<int64_t> norms = s.all("layernorm_forward");
  for (size_t l = 0; l < 5; ++l) EXPECT_EQ(s.next(waits[l + 1]), norms[2 * l]);
}

TEST(Schedule, TheLossIsReducedOnce) {
  const Schedule s = schedule_of({.micro_steps = 2, .sharded = true});
  EXPECT_GT(s.only("all_reduce", "loss"), s.all("linear_cross_entropy").back());
  EXPECT_LT(s.at(s.only("all_reduce", "loss")).ticket,
            s.at(s.next(s.all("embedding_backward").back(), "device_after")).ticket);
}

TEST(Schedule, OneRankIsSilent) {
  const Schedule s = schedule_of({.ranks = 1});
  EXPECT_TRUE(s.collectives().empty());
  EXPECT_TRUE(s.all("device_after").empty());
}

// Half a million tokens per step, as in the training of GPT-2 and in llm.c's reproduction, on four
// H100.
TEST(Schedule, OfGpt2HidesWhatItSends) {
  for (const auto& [sharded, reduce_bf16] :
       {std::pair(false, false), {false, true}, {true, false}, {true, true}}) {
    Case c{.config = kGpt2,
           .batch_size = 64,
           .micro_steps = 2,
           .sharded = sharded,
           .reduce_bf16 = reduce_bf16};
    c.bucket_elements = int64_t{4} << 20;
    const Schedule s = schedule_of(c);
    for (const Network& network : {kNvlink, kInfiniband200}) {
      const StepTimes t = model_of(s, kH100, network, 4);
      std::printf("stage %d, %s gradients, %s: %s\n", sharded, reduce_bf16 ? "bf16" : "fp32",
                  network.name, t.line().c_str());
      EXPECT_LE(t.exposed_s, 0.05 * t.step_s) << network.name;
      EXPECT_GT(t.communication_s, 2 * t.exposed_s) << network.name;
    }
  }
}

}  // namespace
}  // namespace lathe::testing
