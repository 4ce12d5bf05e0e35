// The memory that a GPT-2 takes, from formulas: a second opinion on the memory plan, which counts
// what the constructors allocate.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>

#include "src/model/decoder.h"
#include "tests/model/harness.h"
#include "tests/parallel/step_model.h"

namespace lathe::testing {
namespace {

// A shape without memory, for questions to the table of operations. The address is never read; it
// only shows that the tensor is not absent.
Tensor imagined(DType dtype, Shape shape) {
  return Tensor{reinterpret_cast<void*>(kArenaAlignment), dtype, shape};
}

int64_t flat_elements(const ModelConfig& config) {
  const auto rounded = [](int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; };
  const auto aligned = [&](int64_t n) { return rounded(n, kParameterAlignment); };
  const int64_t c = config.n_embd;
  const auto vector = [&](int64_t n) { return aligned(n); };
  const auto bias = [&](int64_t n) { return config.bias ? aligned(n) : 0; };
  const auto layernorm = vector(c) + bias(c);
  const auto linear = [&](int64_t in, int64_t out) { return aligned(in * out) + bias(out); };
  const int64_t layer =
      2 * layernorm + linear(c, 3 * c) + linear(c, c) + linear(c, 4 * c) + linear(4 * c, c);
  const int64_t embeddings = aligned(config.padded_vocab_size() * c) + aligned(config.seq_len * c);
  return embeddings + config.n_layer * layer + layernorm;
}

// The scratch of the operation that needs most, each at the largest size in a step.
size_t training_workspace(const ModelConfig& config, const StepShape& shape, const Ops& ops) {
  const DType dtype = shape.dtype, acc = accumulator_of(dtype);
  const int64_t b = shape.batch_size, t = shape.seq_len, c = config.n_embd, n = b * t;
  const Tensor x = imagined(dtype, {b, t, c}), x_nc = imagined(dtype, {n, c});
  const Tensor statistics = imagined(acc, {b, t}), vector = imagined(dtype, {c});
  const Tensor dvector = imagined(acc, {c}), none;
  const Tensor tokens = imagined(DType::int32, {b, t});
  const Tensor wte = imagined(dtype, {config.padded_vocab_size(), c});
  const Tensor dwte = imagined(acc, {config.padded_vocab_size(), c});
  const Dropout dropout{config.dropout, 0, DropoutSite::embedding, nullptr};
  const Tensor dropped = config.dropout > 0 ? x : none;
  size_t most = 0;
  const auto ask = [&](const auto& args) { most = std::max(most, ops.workspace_bytes(args)); };

  ask(EmbeddingForward{.x_btc = x,
                       .tokens_bt = tokens,
                       .wte_vc = wte,
                       .wpe_tc = imagined(dtype, {config.seq_len, c}),
                       .dropout = dropout});
  ask(EmbeddingBackward{.dwte_vc = dwte,
                        .dwpe_tc = imagined(acc, {config.seq_len, c}),
                        .dx_btc = x,
                        .tokens_bt = tokens,
                        .dropout = dropout,
                        .accumulate = true});
  ask(LayerNormForward{.out_btc = x,
                       .residual_out_btc = x,
                       .mean_bt = statistics,
                       .rstd_bt = statistics,
                       .x_btc = x,
                       .residual_in_btc = x,
                       .weight_c = vector,
                       .bias_c = config.bias ? vector : none,
                       .dropout = dropout});
  ask(LayerNormBackward{.d_residual_btc = x,
                        .dx_btc = dropped,
                        .dweight_c = dvector,
                        .dbias_c = config.bias ? dvector : none,
                        .dx_sums_c = config.bias ? dvector : none,
                        .dout_btc = x,
                        .residual_out_btc = x,
                        .mean_bt = statistics,
                        .rstd_bt = statistics,
                        .weight_c = vector,
                        .dropout = dropout,
                        .accumulate = true});
  struct Linear {
    int64_t in, out;
    bool gelu_out, gelu_in;
  };
  for (const auto& [in, out, gelu_out, gelu_in] :
       {Linear{c, 3 * c, false, false}, Linear{c, c, false, false}, Linear{c, 4 * c, true, false},
        Linear{4 * c, c, false, true}}) {
    const Tensor weight = imagined(dtype, {in, out}), y = imagined(dtype, {n, out});
    const Tensor input = imagined(dtype, {n, in});
    ask(LinearForward{.y_no = y,
                      .pre_activation_no = gelu_out ? y : none,
                      .x_ni = input,
                      .weight_io = weight,
                      .bias_o = config.bias ? imagined(dtype, {out}) : none,
                      .gelu = gelu_out ? config.gelu : Gelu::none});
    ask(LinearBackward{.dx_ni = input,
                       .dweight_io = imagined(acc, {in, out}),
                       .dx_sums_i = config.bias && gelu_in ? imagined(acc, {in}) : none,
                       .dy_no = y,
                       .x_ni = input,
                       .weight_io = weight,
                       .input_pre_activation_ni = gelu_in ? input : none,
                       .gelu = gelu_in ? config.gelu : Gelu::none,
                       .accumulate = true});
  }
  Dropout attention_dropout = dropout;
  attention_dropout.site = DropoutSite::attention;
  const Tensor qkv = imagined(dtype, {b, t, 3 * c}), lse = imagined(acc, {b, config.n_head, t});
  ask(AttentionForward{.out_btc = x,
                       .logsumexp_bht = lse,
                       .qkv_bt3c = qkv,
                       .n_head = config.n_head,
                       .dropout = attention_dropout});
  ask(AttentionBackward{.dqkv_bt3c = qkv,
                        .dqkv_sums_3c = config.bias ? imagined(acc, {3 * c}) : none,
                        .dout_btc = x,
                        .out_btc = x,
                        .logsumexp_bht = lse,
                        .qkv_bt3c = qkv,
                        .n_head = config.n_head,
                        .dropout = attention_dropout,
                        .accumulate = true});
  for (bool backward : {false, true}) {
    ask(LinearCrossEntropy{.losses_n = imagined(acc, {n}),
                           .dx_nc = backward ? x_nc : none,
                           .dwte_vc = backward ? dwte : none,
                           .x_nc = x_nc,
                           .wte_vc = wte,
                           .targets_n = imagined(DType::int32, {n}),
                           .vocab_size = config.vocab_size,
                           .logits_at_once = shape.logits_at_once,
                           .accumulate = backward});
  }
  return most;
}

size_t decoding_workspace(const ModelConfig& config, DType dtype, int64_t capacity, int64_t t,
                          const Ops& ops) {
  const DType acc = accumulator_of(dtype);
  const int64_t c = config.n_embd;
  const Tensor x = imagined(dtype, {1, t, c}), statistics = imagined(acc, {1, t}), none;
  const Tensor vector = imagined(dtype, {c}), cache = imagined(dtype, {1, capacity, c});
  const Tensor wte = imagined(dtype, {config.padded_vocab_size(), c});
  size_t most = 0;
  const auto ask = [&](const auto& args) { most = std::max(most, ops.workspace_bytes(args)); };

  ask(EmbeddingForward{.x_btc = x,
                       .tokens_bt = imagined(DType::int32, {1, t}),
                       .wte_vc = wte,
                       .wpe_tc = imagined(dtype, {config.seq_len, c}),
                       .first_position = capacity - t});
  ask(LayerNormForward{.out_btc = x,
                       .residual_out_btc = x,
                       .mean_bt = statistics,
                       .rstd_bt = statistics,
                       .x_btc = x,
                       .residual_in_btc = x,
                       .weight_c = vector,
                       .bias_c = config.bias ? vector : none});
  struct Linear {
    int64_t in, out;
    bool gelu;
  };
  for (const auto& [in, out, gelu] : {Linear{c, 3 * c, false}, Linear{c, c, false},
                                      Linear{c, 4 * c, true}, Linear{4 * c, c, false}}) {
    const Tensor y = imagined(dtype, {t, out});
    ask(LinearForward{.y_no = y,
                      .pre_activation_no = gelu ? y : none,
                      .x_ni = imagined(dtype, {t, in}),
                      .weight_io = imagined(dtype, {in, out}),
                      .bias_o = config.bias ? imagined(dtype, {out}) : none,
                      .gelu = gelu ? config.gelu : Gelu::none});
  }
  ask(AttentionCached{.out_btc = x,
                      .keys_bmc = cache,
                      .values_bmc = cache,
                      .qkv_bt3c = imagined(dtype, {1, t, 3 * c}),
                      .n_head = config.n_head,
                      .past = capacity - t});
  ask(Logits{.logits_nv = imagined(acc, {1, config.vocab_size}),
             .x_nc = imagined(dtype, {1, c}),
             .wte_vc = wte,
             .vocab_size = config.vocab_size});
  return most;
}

void add_decoder(MemoryPlan& plan, const ModelConfig& config, DType dtype, int64_t capacity,
                 int64_t chunk, const Ops& ops) {
  const int64_t c = config.n_embd;
  const auto cache = [&](DType type, int64_t elements, int64_t count = 1) {
    for (int64_t i = 0; i < count; ++i) plan.add(MemoryCategory::cache, type, elements);
  };
  cache(dtype, capacity * c, 2 * config.n_layer);
  cache(DType::int32, chunk);
  cache(dtype, chunk * c, 4);
  cache(dtype, chunk * 4 * c, 2);
  cache(accumulator_of(dtype), chunk, 2);
  cache(accumulator_of(dtype), config.vocab_size);
  const size_t workspace = std::max(decoding_workspace(config, dtype, capacity, chunk, ops),
                                    decoding_workspace(config, dtype, capacity, 1, ops));
  cache(DType::uint8, static_cast<int64_t>(workspace));
}

// What ranks share, on each of them. Returns the number of AdamW's segments.
size_t add_parameters(MemoryPlan& plan, const ModelConfig& config, const StepShape& shape,
                      int64_t ranks) {
  const DataParallelOptions& o = shape.parallel;
  const MemorySpace states =
      shape.offload.states == StatesPlace::device ? MemorySpace::device : MemorySpace::pinned;
  const DType dtype = shape.dtype, acc = accumulator_of(dtype);
  const auto add = [&](MemoryCategory category, DType type, int64_t elements, int64_t count = 1) {
    for (int64_t i = 0; i < count; ++i) plan.add(category, type, elements);
  };
  const auto add_gradients = [&](DType type, int64_t elements, int64_t count = 1) {
    add(MemoryCategory::gradients, type, elements, count);
  };
  if (ranks == 1) {
    const int64_t all = flat_elements(config);
    add(MemoryCategory::weights, dtype, all);
    if (dtype != acc) plan.add(MemoryCategory::masters, acc, all, states);
    add_gradients(acc, all);
    for (int i = 0; i < 2; ++i) plan.add(MemoryCategory::optimizer, acc, all, states);
    const ParameterLayout layout(config);
    return layout.segments(1, layout.whole()).size();
  }
  // Buckets end with padding, which the layout knows.
  const ParameterLayout layout(config, {ranks, o.bucket_elements, o.zero_stage == 3});
  const int64_t all = layout.elements, embeddings = layout.buckets[0].elements();
  const int64_t owned = o.zero_stage > 0 ? all / ranks : all;
  int64_t largest_bucket = 0;
  std::map<int64_t, int64_t> layers;  // elements of each
  for (const Bucket& bucket : layout.buckets) {
    if (bucket.first_layer < 0) continue;
    largest_bucket = std::max(largest_bucket, bucket.elements());
    layers[bucket.first_layer] += bucket.elements();
  }
  const bool slots = o.zero_stage == 3 && o.zero_slots < config.n_layer;
  if (slots) {
    int64_t largest_layer = 0;
    for (const auto& [layer, elements] : layers) largest_layer = std::max(largest_layer, elements);
    add(MemoryCategory::weights, dtype, embeddings);
    add(MemoryCategory::weights, dtype, largest_layer, o.zero_slots);
    plan.add(dtype == acc ? MemoryCategory::masters : MemoryCategory::weights, dtype,
             (all - embeddings) / ranks, o.weights);
  } else {
    add(MemoryCategory::weights, dtype, all);
  }
  if (dtype != acc) plan.add(MemoryCategory::masters, acc, owned, states);
  const auto add_written = [&](DType type) {
    if (!o.reduce_each_micro_step) return add_gradients(type, all);
    const auto others = static_cast<int64_t>(layout.buckets.size()) - 1;
    add_gradients(type, embeddings);
    add_gradients(type, largest_bucket, std::min(o.zero_slots + 1, others));
  };
  add_written(acc);
  if (o.reduce_bf16) add_written(DType::bf16);
  if (o.reduce_each_micro_step) add_gradients(acc, owned);
  for (int i = 0; i < 2; ++i) plan.add(MemoryCategory::optimizer, acc, owned, states);

  // Of each range of parts that are updated together.
  const auto parts = o.zero_stage > 0 ? layout.share(0) : layout.whole();
  const std::span all_parts(parts);
  size_t segments = 0;
  if (o.zero_stage == 0 || slots) {
    return layout.segments(1, all_parts.first(1)).size() +
           layout.segments(1, all_parts.subspan(1)).size();
  }
  for (size_t b = 0; b < parts.size(); ++b)
    segments += layout.segments(1, all_parts.subspan(b, 1)).size();
  return segments;
}

// For a training run on rank 0 of `ranks`.
MemoryPlan expected_training(const ModelConfig& config, const StepShape& shape, int64_t ranks,
                             const Ops& ops) {
  const DType dtype = shape.dtype, acc = accumulator_of(dtype);
  const int64_t c = config.n_embd, n = shape.batch_size * shape.seq_len;
  MemoryPlan plan;
  const size_t segments = add_parameters(plan, config, shape, ranks);

  const auto activation = [&](DType type, int64_t elements, int64_t count) {
    for (int64_t i = 0; i < count; ++i) plan.add(MemoryCategory::activations, type, elements);
  };
  // The inputs of layers and of ln_f. Once for all layers if recomputed: gelu; ln_1, ln_2;
  // attention, residual_mid, qkv, pre_gelu, statistics.
  const auto layers_below = [&](Recompute level) {
    return shape.recompute < level ? config.n_layer : int64_t{1};
  };
  const int64_t inputs = config.n_layer + 1;
  const int64_t leaving = shape.offload.inputs ? std::max<int64_t>(0, inputs - 3) : 0;
  for (int64_t i = 0; i < leaving; ++i)
    plan.add(MemoryCategory::activations, dtype, n * c, MemorySpace::pinned);
  activation(dtype, n * c, inputs - leaving);
  activation(dtype, n * 4 * c, layers_below(Recompute::gelu));
  activation(dtype, n * c, 2 * layers_below(Recompute::layernorm));
  const int64_t layers = layers_below(Recompute::block);
  activation(dtype, n * c, 2 * layers);
  activation(dtype, n * 3 * c, layers);
  activation(dtype, n * 4 * c, layers);
  activation(acc, n, 4 * layers);
  activation(acc, n * config.n_head, layers);
  // Once: projection, ln_f, d_residual, d_c (and d_branch); d_4c; statistics, losses.
  activation(dtype, n * c, config.dropout > 0 ? 5 : 4);
  activation(dtype, n * 4 * c, 1);
  activation(acc, n, 3);

  plan.add(MemoryCategory::workspace, DType::uint8,
           static_cast<int64_t>(training_workspace(config, shape, ops)));
  // Tokens and targets of all micro-steps; the step's inputs and results; AdamW's segments.
  for (int i = 0; i < 2; ++i) plan.add(MemoryCategory::batch, DType::int32, shape.micro_steps * n);
  plan.add(MemoryCategory::batch, DType::uint8,
           shape.micro_steps * static_cast<int64_t>(sizeof(StepInputs)));
  plan.add(MemoryCategory::batch, DType::uint8, sizeof(StepResults));
  plan.add(MemoryCategory::batch, DType::uint8,
           static_cast<int64_t>(segments * sizeof(OptimizerSegment)));
  if (shape.decode_len > 0) {
    add_decoder(plan, config, dtype, shape.decode_len, shape.decode_len, ops);
  }
  return plan;
}

// For sampling alone.
MemoryPlan expected_decoding(const ModelConfig& config, DType dtype, int64_t chunk,
                             const Ops& ops) {
  MemoryPlan plan;
  plan.add(MemoryCategory::weights, dtype, flat_elements(config));
  add_decoder(plan, config, dtype, config.seq_len, chunk, ops);
  return plan;
}

const ModelConfig kConfigs[] = {
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

// The plan of rank 0 of `ranks`, on the device under test.
MemoryPlan plan_of(const ModelConfig& config, const StepShape& shape, int ranks = 1) {
  const auto device = make_test_device(shape.dtype);
  Schedule ignored;
  AbsentRanks others(ranks, ignored);
  return plan_training(config, {.weight_decay = 0}, shape, *device, Mesh(others));
}

void expect_agreement(const ModelConfig& config, const StepShape& shape, int ranks) {
  const auto device = make_test_device(shape.dtype);
  const MemoryPlan plan = plan_of(config, shape, ranks);
  const MemoryPlan expected = expected_training(config, shape, ranks, device->ops(shape.dtype));
  EXPECT_EQ(plan, expected) << to_string(plan) << to_string(expected);
}

TEST(Plan, IsWhatTheFormulasSay) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp64}) {
    for (Recompute recompute :
         {Recompute::none, Recompute::gelu, Recompute::layernorm, Recompute::block}) {
      const StatesPlace offloaded =
          recompute == Recompute::block ? StatesPlace::pinned : StatesPlace::device;
      for (const ModelConfig& config : kConfigs) {
        SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), name_of(recompute)));
        expect_agreement(
            config,
            {.dtype = dtype,
             .batch_size = 3,
             .seq_len = config.seq_len,
             .micro_steps = 2,
             .decode_len = config.seq_len,
             .recompute = recompute,
             .offload = {.states = offloaded, .inputs = recompute == Recompute::block}},
            1);
      }
    }
  }
}

TEST(Plan, OfSeveralRanksIsWhatTheFormulasSay) {
  struct Case {
    int64_t stage, zero_slots = 2;
    bool each_micro_step = false;
  };
  for (DType dtype : {DType::fp32, DType::bf16}) {
    for (const auto& [stage, zero_slots, each_micro_step] :
         {Case{0}, Case{1}, Case{2}, Case{3}, Case{0, 2, true}, Case{1, 2, true}, Case{2, 9},
          Case{3, 9}}) {
      for (const bool reduce_bf16 : {false, true}) {
        for (const int ranks : {2, 4, 512}) {
          const MemorySpace host = reduce_bf16 ? MemorySpace::pinned : MemorySpace::device;
          SCOPED_TRACE(fmt::format("{} stage {}, {} slots, {} ranks", name_of(dtype), stage,
                                   zero_slots, ranks));
          expect_agreement(kConfigs[1],
                           {.dtype = dtype,
                            .seq_len = 65,
                            .micro_steps = 2,
                            .parallel = {.bucket_elements = 20000,
                                         .zero_stage = stage,
                                         .zero_slots = zero_slots,
                                         .reduce_each_micro_step = each_micro_step || stage >= 2,
                                         .reduce_bf16 = reduce_bf16,
                                         .weights = host},
                            .offload = {reduce_bf16 ? StatesPlace::pinned : StatesPlace::device}},
                           ranks);
        }
      }
    }
  }
}

// One rank whose states the host updates, or that lie in a file, against the same with states in
// pinned memory.
TEST(Plan, OfStatesInChunksIsWhatTheFormulasSay) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp64}) {
    const auto device = make_test_device(dtype);
    const DType acc = accumulator_of(dtype);
    const bool masters = dtype != acc;
    for (const ModelConfig& config : kConfigs) {
      for (const int64_t chunk : {int64_t{384}, int64_t{8192}, kOffloadChunk}) {
        SCOPED_TRACE(fmt::format("{}, chunks of {}", name_of(dtype), chunk));
        StepShape shape{.dtype = dtype,
                        .seq_len = config.seq_len,
                        .offload = {.states = StatesPlace::pinned, .chunk = chunk}};
        const MemoryPlan pinned = expected_training(config, shape, 1, device->ops(dtype));
        const ParameterLayout layout(config);
        size_t segments = 0, records = 0, largest_record = 0, count = 0;
        int64_t largest = 0;
        for (int64_t begin = 0; begin < layout.elements; begin += chunk, ++count) {
          const int64_t elements = std::min(chunk, layout.elements - begin);
          const ShardPart part{begin, 0, elements, begin};
          segments += layout.segments(1, {&part, 1}).size();
          const size_t record = round_up((masters ? 3 : 2) * elements * size_of(acc), 4096);
          records += record;
          largest_record = std::max(largest_record, record);
          largest = std::max(largest, elements);
        }
        const size_t masters_bytes = masters ? layout.elements * size_of(acc) : 0;
        const auto segments_of = [](size_t n) {
          MemoryPlan plan;
          plan.add(MemoryCategory::batch, DType::uint8,
                   static_cast<int64_t>(n * sizeof(OptimizerSegment)));
          return plan.of(MemoryCategory::batch);
        };
        const size_t before = segments_of(layout.segments(1, layout.whole()).size());

        MemoryPlan host = pinned;
        host.of(MemoryCategory::batch) -= before;
        for (int i = 0; i < 3; ++i) {
          host.add(MemoryCategory::gradients, acc, largest, MemorySpace::pinned);
          host.add(MemoryCategory::weights, dtype, largest, MemorySpace::pinned);
        }
        host.add(MemoryCategory::batch, DType::uint8, sizeof(StepInputs), MemorySpace::pinned);
        host.add(MemoryCategory::batch, DType::uint8, sizeof(StepResults), MemorySpace::pinned);
        shape.offload.states = StatesPlace::host;
        EXPECT_EQ(plan_of(config, shape), host)
            << to_string(plan_of(config, shape)) << to_string(host);

        MemoryPlan files = pinned;
        files.of(MemoryCategory::batch) += segments_of(segments) - before;
        files.of(MemoryCategory::masters, MemorySpace::pinned) = 0;
        files.of(MemoryCategory::optimizer, MemorySpace::pinned) = 0;
        files.add(MemoryCategory::optimizer, DType::uint8,
                  static_cast<int64_t>(std::min<size_t>(3, count) * largest_record + 4096),
                  MemorySpace::pinned);
        files.of(MemoryCategory::masters, MemorySpace::file) = masters_bytes;
        files.of(MemoryCategory::optimizer, MemorySpace::file) = records - masters_bytes;
        shape.offload.states = StatesPlace::files;
        EXPECT_EQ(plan_of(config, shape), files)
            << to_string(plan_of(config, shape)) << to_string(files);
      }
    }
  }
}

TEST(Plan, OfSamplingIsWhatTheFormulasSay) {
  for (DType dtype : {DType::fp32, DType::bf16}) {
    const auto device = make_test_device(dtype);
    const MemoryPlan plan = Sampler::plan(kConfigs[2], dtype, 7, *device);
    const MemoryPlan expected = expected_decoding(kConfigs[2], dtype, 7, device->ops(dtype));
    EXPECT_EQ(plan, expected) << to_string(plan) << to_string(expected);
  }
}

// What is counted is what is allocated.
TEST(Plan, FillsTheArenaToTheByte) {
  const Harness h(kConfigs[1], {.batch_size = 3, .seq_len = 65, .decode_len = 9});
  EXPECT_EQ(h.arena.used(), plan_of(kConfigs[1], h.trainer.shape));
}

TEST(Plan, SaysIfAMicroStepIsBeyondAllBounds) {
  EXPECT_THROW(plan_of({}, {.batch_size = int64_t{1} << 21, .seq_len = 1024}), UserError);
}

// What a layer keeps per token: 16, 12, 10 and 1 times C values; statistics are small here.
TEST(Plan, EachLevelOfRecomputationKeepsLess) {
  const auto per_layer = [&](Recompute recompute) {
    const auto activations = [&](int64_t n_layer) {
      const MemoryPlan plan = plan_of({.n_layer = n_layer, .vocab_size = 100},
                                      {.batch_size = 2, .seq_len = 64, .recompute = recompute});
      return plan.of(MemoryCategory::activations);
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
  const ParameterLayout layout(ModelConfig{.n_layer = 2, .n_head = 1, .n_embd = 16, .seq_len = 8});
  const auto all = layout.whole();
  const auto none = layout.segments(0, all), some = layout.segments(0.1f, all);
  ASSERT_EQ(none.size(), some.size());
  for (size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(none[i].begin, some[i].begin);
    EXPECT_EQ(none[i].end, some[i].end);
    EXPECT_EQ(none[i].weight_decay, 0);
  }
}

// The last buckets to be reduced are small, because the step waits for them, but not too small.
TEST(Layout, BucketsBecomeSmallerTowardsTheEnd) {
  const int64_t least = int64_t{4} << 20;
  const std::vector<Bucket> buckets = ParameterLayout(ModelConfig{}, {4, least}).buckets;
  ASSERT_EQ(buckets.size(), 20u);
  EXPECT_EQ(buckets[0].name, "embeddings");
  EXPECT_EQ(buckets[1].name, "h.0.ln_1 to h.0.attn.c_attn");
  EXPECT_EQ(buckets[2].name, "h.0.attn.c_proj to h.0.mlp.c_fc");
  EXPECT_EQ(buckets[3].name, "h.0.mlp.c_proj to h.1.attn.c_proj");
  EXPECT_EQ(buckets[19].name, "h.11.ln_2 to ln_f");
  EXPECT_LT(buckets[1].elements(), least / 2);
  for (size_t b = 1; b < buckets.size(); ++b) {
    EXPECT_EQ(buckets[b].begin, buckets[b - 1].end);
    EXPECT_EQ(buckets[b].elements() % (4 * kParameterAlignment), 0);
    EXPECT_GE(buckets[b].elements(), least / 8);
    EXPECT_TRUE(b <= 2 || buckets[b].elements() >= least) << buckets[b].name;
  }
  // In a small model everything but the embeddings is one message.
  const ModelConfig small{.n_layer = 4, .n_head = 4, .n_embd = 64, .vocab_size = 65, .seq_len = 64};
  EXPECT_EQ(ParameterLayout(small, {4, least}).buckets.size(), 2u);
  EXPECT_EQ(ParameterLayout(small, {4, 0}).buckets.size(), 17u);
}

// With whole layers, what a layer's weights need is gathered without another layer's.
TEST(Layout, NoBucketHoldsPartsOfTwoLayers) {
  for (const int64_t least : {int64_t{0}, int64_t{4} << 20, int64_t{1} << 40}) {
    const ParameterLayout layout(ModelConfig{}, {8, least, /*whole_layers=*/true});
    for (size_t i = 1; i < layout.slots.size(); ++i) {
      const bool layer_starts = layout.slots[i].spec.layer >= 0 &&
                                layout.slots[i].spec.layer != layout.slots[i - 1].spec.layer;
      EXPECT_TRUE(!layer_starts || layout.starts_bucket(i)) << layout.slots[i].spec.name;
    }
    EXPECT_EQ(layout.buckets.back().name.substr(0, 5), "h.11.");
    EXPECT_GE(layout.buckets.size(), 13u);
  }
}

// An element has the number that it has with one rank, whatever the ranks and buckets.
TEST(Layout, NumbersDoNotDependOnRanks) {
  const ModelConfig config{.n_layer = 3, .n_head = 1, .n_embd = 24, .vocab_size = 77};
  const ParameterLayout one(config);
  for (const Sharding& sharding : {Sharding{3, 0}, Sharding{4, 9000}, Sharding{7, 0, true}}) {
    const ParameterLayout layout(config, sharding);
    for (size_t i = 0; i < layout.slots.size(); ++i) {
      const Bucket& bucket = layout.buckets[layout.bucket_of_slot[i]];
      EXPECT_EQ(bucket.first_number + layout.slots[i].offset - bucket.begin, one.slots[i].offset);
    }
    // AdamW gets the same numbers, whichever rank has an element.
    for (int64_t rank = 0; rank < sharding.ranks; ++rank) {
      const std::vector<ShardPart> parts = layout.share(rank);
      for (const OptimizerSegment& segment : layout.segments(1, parts)) {
        const auto holds = [&](const ShardPart& part) {
          return segment.begin >= part.local && segment.end <= part.local + part.elements;
        };
        const auto part = std::ranges::find_if(parts, holds);
        ASSERT_NE(part, parts.end());
        EXPECT_EQ(segment.shift, part->number - part->local);
      }
    }
  }
}

TEST(Plan, AnArenaThatIsTooSmallIsAnError) {
  const auto device = make_test_device(DType::fp32);
  const ModelConfig config{.n_layer = 1, .n_head = 1, .n_embd = 16, .vocab_size = 20, .seq_len = 8};
  const MemoryPlan plan = plan_of(config, {.batch_size = 1, .seq_len = 8});
  Arena arena(*device, plan.of(MemoryCategory::weights));
  EXPECT_THROW(LocalStore(config, device->ops(DType::fp32), arena), CheckError);
}

// A rank of `tp` has whole heads, its hidden channels and its vocabulary; sums over ranks are made
// of partial products, so a matrix that is split by rows has a bias that is not split.
TEST(Layout, ParametersSayHowTheySplit) {
  constexpr int64_t kRanks = 4;
  const ModelConfig config{.n_layer = 1, .n_head = 4, .n_embd = 64, .vocab_size = 128};
  int64_t of_a_rank = 0, whole = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    SCOPED_TRACE(spec.name);
    const int64_t elements = spec.shape.elements();
    const bool matrix = spec.shape.rank == 2;
    if (spec.split.along == Split::none) {
      whole += elements;
      EXPECT_TRUE(!matrix || spec.name == "wpe.weight");
      continue;
    }
    const bool columns = spec.split.along == Split::columns;
    const int64_t length = spec.shape.dim[matrix && columns ? 1 : 0];
    EXPECT_EQ(length % (spec.split.groups * kRanks), 0);
    EXPECT_EQ(spec.split.groups, spec.name.starts_with("h.0.attn.c_attn") ? 3 : 1);
    of_a_rank += elements / kRanks;
  }
  const int64_t c = config.n_embd;
  EXPECT_EQ(whole, config.seq_len * c + 3 * 2 * c + 2 * c);  // wpe, LayerNorms, c_proj's biases
  EXPECT_EQ(of_a_rank, (128 * c + 12 * c * c + 3 * c + 4 * c) / kRanks);
}

TEST(Plan, ParameterCountsOfTheKnownModels) {
  const auto counts = [](ModelConfig config) { return count_parameters(config); };
  EXPECT_EQ(counts({}).total, 124439808);
  EXPECT_EQ(counts({.n_layer = 24, .n_head = 16, .n_embd = 1024}).total, 354823168);
  EXPECT_EQ(counts({.n_layer = 36, .n_head = 20, .n_embd = 1280}).total, 774030080);
  EXPECT_EQ(counts({.n_layer = 48, .n_head = 25, .n_embd = 1600}).total, 1557611200);
  const ModelConfig talk{.vocab_size = 65, .bias = false};
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
