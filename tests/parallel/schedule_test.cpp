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
  int64_t stage = 0, zero_slots = 2;
  bool reduce_bf16 = false;
  int64_t bucket_elements = 0;
  DType dtype = DType::bf16;
  MemorySpace weights = MemorySpace::device;
};

// The step of src/train.cpp.
Schedule schedule_of(const Case& c) {
  const std::unique_ptr<Device> cpu = make_cpu_device();
  ImaginedDevice device(*cpu);
  Schedule schedule;
  AbsentRanks ranks(c.ranks, schedule);
  Arena arena(device, kBoundless, kBoundless);
  Trainer trainer(c.config, {},
                  {.dtype = c.dtype,
                   .batch_size = c.batch_size,
                   .seq_len = c.config.seq_len,
                   .micro_steps = c.micro_steps,
                   .parallel = {.bucket_elements = c.bucket_elements,
                                .zero_stage = c.stage,
                                .zero_slots = c.zero_slots,
                                .reduce_each_micro_step = c.stage >= 2,
                                .reduce_bf16 = c.reduce_bf16,
                                .weights = c.weights}},
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
  for (const int64_t stage : {0, 1, 2, 3}) {
    for (bool reduce_bf16 : {false, true}) {
      Case c{.config = kGpt2, .batch_size = 1, .stage = stage, .reduce_bf16 = reduce_bf16};
      c.bucket_elements = int64_t{4} << 20;
      const Schedule s = schedule_of(c);
      const ParameterLayout layout(c.config, {c.ranks, c.bucket_elements, stage == 3});
      EXPECT_EQ(layout.buckets.size(), stage == 3 ? 25u : 20u);
      for (const Bucket& bucket : layout.buckets) {
        const bool scattered = stage > 0 || bucket.first_layer < 0;
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
  for (const int64_t stage : {0, 1}) {
    const Schedule s = schedule_of({.stage = stage});
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
    ASSERT_EQ(updates.size(), stage == 1 ? 21u : 2u);
    if (stage == 1) continue;
    const int64_t gather = s.only("all_gather", "embeddings");
    EXPECT_GT(gather, norm);
    EXPECT_LT(gather, updates[0]);
    EXPECT_EQ(s.at(s.next(updates[0], "device_after")).ticket, s.at(gather).ticket);
    EXPECT_LT(s.next(updates[0], "device_after"), updates[1]);
  }
}

// Stages 1 and 2: all gathers are enqueued before the forward pass, in the order in which it needs
// them, and each layer waits only for its own.
TEST(Schedule, LayersWaitForTheirOwnWeights) {
  for (const int64_t stage : {1, 2}) {
    const Schedule s = schedule_of({.stage = stage});
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
}

// Stage 3, as told by the collectives: which layers' weights are there.
struct Residence {
  std::vector<std::string> gathers;  // in order
  int64_t most = 0;                  // layers at once, there or on their way
};
Residence residence_of(const Schedule& s, int64_t slots) {
  Residence r;
  std::vector<std::string> there(static_cast<size_t>(slots));
  for (const auto& [at, entry] : s.collectives()) {
    if (entry.kind != "all_gather" || entry.what == "embeddings") continue;
    const std::string layer = entry.what.substr(0, entry.what.find('.', 2));
    if (!r.gathers.empty() && r.gathers.back() == layer) continue;  // another bucket of it
    r.gathers.push_back(layer);
    std::string& slot = there.at(std::stoul(layer.substr(2)) % there.size());
    EXPECT_NE(slot, layer) << "is there already";
    slot = layer;
    const auto taken = std::ranges::count_if(there, [](const auto& of) { return !of.empty(); });
    r.most = std::max<int64_t>(r.most, taken);
  }
  return r;
}

// The first gathers are enqueued with the embeddings'; every other one while the layer before it in
// the pass is about to run. Layers that are still there are not gathered again.
TEST(Schedule, ALayersWeightsAreGatheredOneLayerAhead) {
  const Schedule s = schedule_of({.micro_steps = 2, .stage = 3});
  const Residence r = residence_of(s, 2);
  const std::vector<std::string> expected = {"h.0", "h.1", "h.2", "h.3", "h.4",  // forward
                                             "h.2", "h.1", "h.0",                // backward
                                             "h.2", "h.3", "h.4",                // forward
                                             "h.2", "h.1", "h.0"};               // backward
  EXPECT_EQ(r.gathers, expected);
  EXPECT_EQ(r.most, 2);
  // In the first forward pass, layer l begins with layernorm_forward 2 l, in the backward pass with
  // linear_backward 4 (4 - l).
  const auto first_of = [&](const char* layer, size_t which) {
    const std::vector<int64_t> all = s.all("all_gather", std::string(layer) + ".mlp.c_proj");
    return all.at(which);
  };
  const std::vector<int64_t> norms = s.all("layernorm_forward");
  const std::vector<int64_t> linears = s.all("linear_backward");
  EXPECT_LT(first_of("h.1", 0), s.first("embedding_forward"));
  EXPECT_GT(first_of("h.2", 0), norms[0 * 2 + 1]);  // layer 0 is done
  EXPECT_LT(first_of("h.2", 0), norms[1 * 2]);      // layer 1 is not begun
  EXPECT_GT(first_of("h.3", 0), norms[1 * 2 + 1]);
  EXPECT_LT(first_of("h.3", 0), norms[2 * 2]);
  EXPECT_GT(first_of("h.2", 1), linears[3]);  // layer 4 is done
  EXPECT_LT(first_of("h.2", 1), linears[4]);  // layer 3 is not begun
  EXPECT_GT(first_of("h.1", 1), linears[7]);
  EXPECT_LT(first_of("h.1", 1), linears[8]);
}

// If a rank's share of the weights lies on the host, it is copied just before each gather, and
// nothing else is.
TEST(Schedule, SharesOnTheHostAreCopiedBeforeEachGather) {
  const Case plain{.micro_steps = 2, .stage = 3};
  Case offloaded = plain;
  offloaded.weights = MemorySpace::pinned;
  const Schedule s = schedule_of(offloaded);
  int64_t copies = 0;
  for (const int64_t gather : s.all("all_gather")) {
    const Schedule::Entry& all = s.at(gather);
    if (all.what == "embeddings") continue;  // whose share stays on the device
    const Schedule::Entry& copy = s.at(gather - 1);
    EXPECT_EQ(copy.kind, "copy");
    EXPECT_EQ(copy.what, all.what);
    EXPECT_EQ(copy.bytes * plain.ranks, all.bytes) << all.what;
    ++copies;
  }
  EXPECT_EQ(static_cast<int64_t>(s.all("copy").size()), copies);
  EXPECT_EQ(s.entries().size(), schedule_of(plain).entries().size() + static_cast<size_t>(copies));
  EXPECT_TRUE(schedule_of(plain).all("copy").empty());
}

TEST(Schedule, MoreSlotsGatherFurtherAheadAndLess) {
  for (const int64_t slots : {2, 3, 4, 5, 9}) {
    const Residence r =
        residence_of(schedule_of({.micro_steps = 3, .stage = 3, .zero_slots = slots}), slots);
    const int64_t there = std::min<int64_t>(slots, 5);
    EXPECT_EQ(static_cast<int64_t>(r.gathers.size()), 5 + 5 * (5 - there)) << slots;
    EXPECT_EQ(r.most, there) << slots;
  }
}

// Stages 2 and 3: every micro-step reduces every bucket once; the loss follows in the last.
TEST(Schedule, EachMicroStepReducesItsGradients) {
  for (const int64_t stage : {2, 3}) {
    const Schedule s = schedule_of({.micro_steps = 3, .stage = stage});
    const std::vector<int64_t> heads = s.all("linear_cross_entropy");
    for (const char* bucket : {"embeddings", "h.0.mlp.c_proj", "h.2.attn.c_proj"}) {
      const std::vector<int64_t> reductions = s.all("reduce_scatter", bucket);
      ASSERT_EQ(reductions.size(), 3u) << bucket;
      for (size_t m = 0; m < 3; ++m) {
        EXPECT_GT(reductions[m], heads[m]);
        EXPECT_TRUE(m == 2 || reductions[m] < heads[m + 1]);
      }
    }
    EXPECT_GT(s.only("all_reduce", "loss"), heads[2]);
    EXPECT_EQ(s.all("cast").size(), 2 * 21u);  // adds the later two to the first
  }
}

TEST(Schedule, TheLossIsReducedOnce) {
  const Schedule s = schedule_of({.micro_steps = 2, .stage = 1});
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
  for (const auto& [stage, reduce_bf16] :
       {std::pair(0, false), {0, true}, {1, false}, {1, true}, {2, false}, {3, false}}) {
    Case c{.config = kGpt2,
           .batch_size = 64,
           .micro_steps = 2,
           .stage = stage,
           .reduce_bf16 = reduce_bf16};
    c.bucket_elements = int64_t{4} << 20;
    const Schedule s = schedule_of(c);
    for (const Network& network : {kNvlink, kInfiniband200}) {
      const StepTimes t = model_of(s, kH100, network, 4);
      std::printf("stage %d, %s gradients, %s: %s\n", stage, reduce_bf16 ? "bf16" : "fp32",
                  network.name, t.line().c_str());
      EXPECT_LE(t.exposed_s, (stage == 3 ? 0.06 : 0.05) * t.step_s) << network.name;
      EXPECT_GT(t.communication_s, 2 * t.exposed_s) << network.name;
    }
  }
}

// The table of docs/several-ranks.md, with gradients reduced in bf16. What the network cannot carry
// while the device computes is exposed whatever the order.
TEST(Schedule, OfLargerModels) {
  struct Model {
    const char* name;
    ModelConfig config;
    int64_t batch_size;  // sequences of a micro-step
    int ranks;
    int64_t micro_steps;
  };
  const Model models[] = {
      {"124M", kGpt2, 64, 8, 1},
      {"1558M", {.n_layer = 48, .n_head = 25, .n_embd = 1600, .vocab_size = 50257}, 32, 64, 1},
      {"13B",
       {.n_layer = 40, .n_head = 40, .n_embd = 5120, .vocab_size = 50257, .seq_len = 2048},
       16,
       128,
       1}};
  for (const Model& model : models) {
    for (const int64_t stage : {1, 2, 3}) {
      const Schedule s = schedule_of({.config = model.config,
                                      .batch_size = model.batch_size,
                                      .micro_steps = model.micro_steps,
                                      .ranks = model.ranks,
                                      .stage = stage,
                                      .reduce_bf16 = true,
                                      .bucket_elements = int64_t{4} << 20});
      for (const Network& network : {kNvlink, kInfiniband200}) {
        const StepTimes t = model_of(s, kH100, network, model.ranks);
        std::printf("%s, %d ranks, stage %ld, %s: %s\n", model.name, model.ranks,
                    static_cast<long>(stage), network.name, t.line().c_str());
        const double beyond = std::max(0.0, t.communication_s - t.compute_s);
        EXPECT_LE(t.exposed_s, 0.1 * t.step_s + beyond) << network.name;
      }
    }
  }
}

}  // namespace
}  // namespace lathe::testing
