#include "src/model/plan.h"

#include <gtest/gtest.h>

#include "src/model/decoder.h"
#include "tests/model/harness.h"

namespace lathe::testing {
namespace {

const GPT2Config kConfigs[] = {
    {.n_layer = 1, .n_head = 1, .n_embd = 16, .vocab_size = 2, .seq_len = 1},
    {.n_layer = 3,
     .n_head = 3,
     .n_embd = 120,
     .vocab_size = 97,
     .seq_len = 65,
     .bias = false,
     .dropout = 0.1f},
    {.n_layer = 2,
     .n_head = 5,
     .n_embd = 80,
     .vocab_size = 5003,
     .seq_len = 33,
     .gelu = Gelu::exact}};

void expect_agreement(const GPT2Config& config, const RunShape& shape) {
  const auto device = make_test_device(shape.dtype);
  const MemoryPlan plan = plan_training(config, shape, device->ops(shape.dtype));
  Arena arena(*device, plan.total());
  GPT2 model(config, shape.dtype, shape.batch_size, shape.seq_len, *device, arena, shape.recompute);
  const OptimizerConfig undecayed{.weight_decay = 0};
  Optimizer optimizer(undecayed, model.weights(), model.gradients(), model.layout(), *device,
                      arena);
  StepState state(*device, arena, shape.micro_steps);
  for (int i = 0; i < 2; ++i) {
    arena.allocate(MemoryCategory::batch, DType::int32,
                   {shape.micro_steps, shape.batch_size, shape.seq_len});
  }
  Decoder decoder(config, model.weights(), config.seq_len, config.seq_len, *device, arena);
  EXPECT_EQ(arena.used(), plan) << to_string(arena.used()) << to_string(plan);
}

// The plan, from formulas, and the arena, from what the program really took.
TEST(Plan, AgreesWithTheArenaToTheByte) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp64}) {
    for (Recompute recompute :
         {Recompute::none, Recompute::gelu, Recompute::layernorm, Recompute::block}) {
      for (const GPT2Config& config : kConfigs) {
        SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), name_of(recompute)));
        expect_agreement(config, {.dtype = dtype,
                                  .batch_size = 3,
                                  .seq_len = config.seq_len,
                                  .micro_steps = 2,
                                  .decode_len = config.seq_len,
                                  .recompute = recompute});
      }
    }
  }
}

// What a layer keeps per token: 16, 12, 10 and 1 times C values, where statistics weigh little.
TEST(Plan, EachLevelOfRecomputationKeepsLess) {
  const auto device = make_test_device(DType::fp32);
  const auto per_layer = [&](Recompute recompute) {
    const auto activations = [&](int64_t n_layer) {
      const RunShape shape{.batch_size = 2, .seq_len = 64, .recompute = recompute};
      const MemoryPlan plan =
          plan_training({.n_layer = n_layer, .vocab_size = 100}, shape, device->ops(shape.dtype));
      return plan.bytes[static_cast<int>(MemoryCategory::activations)];
    };
    return static_cast<double>(activations(9) - activations(8)) / (2 * 64 * 768 * sizeof(float));
  };
  const double statistics = (4.0 + 12) / 768;
  EXPECT_NEAR(per_layer(Recompute::none), 16 + statistics, 1e-9);
  EXPECT_NEAR(per_layer(Recompute::gelu), 12 + statistics, 1e-9);
  EXPECT_NEAR(per_layer(Recompute::layernorm), 10 + statistics, 1e-9);
  EXPECT_NEAR(per_layer(Recompute::block), 1, 1e-9);
}

TEST(Plan, NoWeightDecayTakesTheSameMemory) {
  const ParameterLayout layout(GPT2Config{.n_layer = 2, .n_head = 1, .n_embd = 16, .seq_len = 8});
  const auto all = layout.shard(0, true);
  const auto none = layout.segments(0, all), some = layout.segments(0.1f, all);
  ASSERT_EQ(none.size(), some.size());
  for (size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(none[i].begin, some[i].begin);
    EXPECT_EQ(none[i].end, some[i].end);
    EXPECT_EQ(none[i].weight_decay, 0);
  }
}

// What is reduced last is small, for it is waited for; but not too small.
TEST(Layout, BucketsBecomeSmallerTowardsTheEnd) {
  const int64_t least = int64_t{4} << 20;
  const std::vector<Bucket> buckets = ParameterLayout(GPT2Config{}, {4, least}).buckets;
  ASSERT_EQ(buckets.size(), 20u);
  EXPECT_EQ(buckets[0].name, "embeddings");
  EXPECT_EQ(buckets[1].name, "h.0.ln_1 to h.0.attn.c_attn");
  EXPECT_EQ(buckets[2].name, "h.0.attn.c_proj to h.0.mlp.c_fc");
  EXPECT_EQ(buckets[3].name, "h.0.mlp.c_proj to h.1.attn.c_proj");
  EXPECT_EQ(buckets[19].name, "h.11.ln_2 to ln_f");
  EXPECT_LT(buckets[1].elements(), least / 2);
  for (size_t b = 1; b < buckets.size(); ++b) {
    EXPECT_EQ(buckets[b].begin, buckets[b - 1].end);
    EXPECT_EQ(buckets[b].elements() % (4 * kNormBlock), 0);
    EXPECT_GE(buckets[b].elements(), least / 8);
    EXPECT_TRUE(b <= 2 || buckets[b].elements() >= least) << buckets[b].name;
  }
  // Of a small model everything but the embeddings is one message.
  const GPT2Config small{.n_layer = 4, .n_head = 4, .n_embd = 64, .vocab_size = 65, .seq_len = 64};
  EXPECT_EQ(ParameterLayout(small, {4, least}).buckets.size(), 2u);
  EXPECT_EQ(ParameterLayout(small, {4, 0}).buckets.size(), 17u);
}

TEST(Plan, AnArenaThatIsTooSmallIsAnError) {
  const auto device = make_test_device(DType::fp32);
  const GPT2Config config{.n_layer = 1, .n_head = 1, .n_embd = 16, .vocab_size = 20, .seq_len = 8};
  const MemoryPlan plan =
      plan_training(config, {.batch_size = 1, .seq_len = 8}, device->ops(DType::fp32));
  Arena arena(*device, plan.bytes[static_cast<int>(MemoryCategory::weights)]);
  EXPECT_THROW(GPT2(config, DType::fp32, 1, 8, *device, arena), CheckError);
}

TEST(Plan, ParameterCountsOfTheKnownModels) {
  const auto counts = [](GPT2Config config) { return count_parameters(config); };
  EXPECT_EQ(counts({}).total, 124439808);
  EXPECT_EQ(counts({.n_layer = 24, .n_head = 16, .n_embd = 1024}).total, 354823168);
  EXPECT_EQ(counts({.n_layer = 36, .n_head = 20, .n_embd = 1280}).total, 774030080);
  EXPECT_EQ(counts({.n_layer = 48, .n_head = 25, .n_embd = 1600}).total, 1557611200);
  const GPT2Config talk{.vocab_size = 65, .bias = false};
  EXPECT_EQ(counts(talk).without_position_embeddings, 85003776);
  int64_t decayed = 0, undecayed = 0, decayed_tensors = 0, undecayed_tensors = 0;
  for (const ParameterSpec& spec : parameter_specs(talk)) {
    (spec.decay ? decayed : undecayed) += spec.shape.elements();
    ++(spec.decay ? decayed_tensors : undecayed_tensors);
  }
  EXPECT_EQ(decayed, 85771008);
  EXPECT_EQ(undecayed, 19200);
  EXPECT_EQ(decayed_tensors, 50);
  EXPECT_EQ(undecayed_tensors, 25);
}

}  // namespace
}  // namespace lathe::testing
