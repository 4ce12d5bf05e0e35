#include "src/model/plan.h"

#include <algorithm>

#include "src/model/optimizer.h"

namespace lathe {

namespace {

// A shape without memory behind it, for questions to the table of operations. The address is never
// read; it only says that the tensor is there.
Tensor imagined(DType dtype, Shape shape) {
  return Tensor{reinterpret_cast<void*>(kArenaAlignment), dtype, shape};
}

int64_t flat_elements(const GPT2Config& config) {
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

// The scratch of the hungriest operation, each at the largest size that a step gives it.
size_t training_workspace(const GPT2Config& config, const RunShape& shape, const Ops& ops) {
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

size_t decoding_workspace(const GPT2Config& config, DType dtype, int64_t capacity, int64_t t,
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

// Rows are counted in 32 bits by the matmul libraries, bytes in 64 by everyone.
void refuse_overflow(const GPT2Config& config, const RunShape& shape) {
  const double tokens = static_cast<double>(shape.batch_size) * static_cast<double>(shape.seq_len);
  const double per_token = 32.0 * static_cast<double>(config.n_embd * config.n_layer) +
                           4.0 * static_cast<double>(config.padded_vocab_size());
  if (tokens < 0x1p31 && tokens * per_token * 8 < 0x1p60) return;
  throw UserError(
      "--batch-size {} with --seq-len {} is more than a micro-step can hold: lower one of them",
      shape.batch_size, shape.seq_len);
}

void add_decoder(MemoryPlan& plan, const GPT2Config& config, DType dtype, int64_t capacity,
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

}  // namespace

MemoryPlan plan_training(const GPT2Config& config, const RunShape& shape, const Ops& ops) {
  refuse_overflow(config, shape);
  const DType dtype = shape.dtype, acc = accumulator_of(dtype);
  const int64_t c = config.n_embd, n = shape.batch_size * shape.seq_len;
  // Buckets of several ranks end with padding, which the layout knows.
  const ParameterLayout layout(config, shape.sharding);
  const int64_t parameters = shape.sharding.ranks > 1 ? layout.elements : flat_elements(config);
  const int64_t owned = shape.sharded ? parameters / shape.sharding.ranks : parameters;
  MemoryPlan plan;
  plan.add(MemoryCategory::weights, dtype, parameters);
  if (shape.sharded && dtype != acc) plan.add(MemoryCategory::weights, dtype, owned);
  if (shape.sharded || dtype != acc) plan.add(MemoryCategory::masters, acc, owned);
  plan.add(MemoryCategory::gradients, acc, parameters);
  if (shape.sharded) plan.add(MemoryCategory::gradients, acc, owned);
  if (shape.reduce_bf16) plan.add(MemoryCategory::gradients, DType::bf16, parameters);
  if (shape.reduce_bf16 && shape.sharded) plan.add(MemoryCategory::gradients, DType::bf16, owned);
  for (int i = 0; i < 2; ++i) plan.add(MemoryCategory::optimizer, acc, owned);

  const auto activation = [&](DType type, int64_t elements, int64_t count) {
    for (int64_t i = 0; i < count; ++i) plan.add(MemoryCategory::activations, type, elements);
  };
  // Per layer: residual_out. Once for all layers where it is made again: gelu; ln_1, ln_2;
  // attention, residual_mid, qkv, pre_gelu, statistics.
  const auto layers_below = [&](Recompute level) {
    return shape.recompute < level ? config.n_layer : int64_t{1};
  };
  activation(dtype, n * c, config.n_layer);
  activation(dtype, n * 4 * c, layers_below(Recompute::gelu));
  activation(dtype, n * c, 2 * layers_below(Recompute::layernorm));
  const int64_t layers = layers_below(Recompute::block);
  activation(dtype, n * c, 2 * layers);
  activation(dtype, n * 3 * c, layers);
  activation(dtype, n * 4 * c, layers);
  activation(acc, n, 4 * layers);
  activation(acc, n * config.n_head, layers);
  // Once: embedded, projection, ln_f, d_residual, d_c (and d_branch); d_4c; statistics, losses.
  activation(dtype, n * c, config.dropout > 0 ? 6 : 5);
  activation(dtype, n * 4 * c, 1);
  activation(acc, n, 3);

  plan.add(MemoryCategory::workspace, DType::uint8,
           static_cast<int64_t>(training_workspace(config, shape, ops)));
  plan.add(MemoryCategory::workspace, DType::fp64, norm_blocks(parameters));
  // Tokens and targets of all micro-steps; the step's inputs and results; AdamW's segments.
  for (int i = 0; i < 2; ++i) plan.add(MemoryCategory::batch, DType::int32, shape.micro_steps * n);
  plan.add(MemoryCategory::batch, DType::uint8,
           shape.micro_steps * static_cast<int64_t>(sizeof(StepInputs)));
  plan.add(MemoryCategory::batch, DType::uint8, sizeof(StepResults));
  const auto segments = layout.segments(1, layout.shard(shape.rank, !shape.sharded));
  plan.add(MemoryCategory::batch, DType::uint8,
           static_cast<int64_t>(segments.size() * sizeof(OptimizerSegment)));
  if (shape.decode_len > 0) {
    add_decoder(plan, config, dtype, shape.decode_len, shape.decode_len, ops);
  }
  return plan;
}

// Each chunk of logits reads and writes all of the embeddings' gradient.
MemoryPlan plan_training_within(size_t memory, const GPT2Config& config, RunShape& shape,
                                const Ops& ops) {
  constexpr int64_t kMost = int64_t{1} << 30, kLeast = int64_t{1} << 26;
  const bool choose = shape.logits_at_once == 0 && memory > 0;
  if (choose) shape.logits_at_once = kMost;
  MemoryPlan plan = plan_training(config, shape, ops);
  while (choose && plan.total() > memory && shape.logits_at_once > kLeast) {
    shape.logits_at_once /= 2;
    plan = plan_training(config, shape, ops);
  }
  return plan;
}

MemoryPlan plan_decoding(const GPT2Config& config, DType dtype, int64_t chunk, const Ops& ops) {
  MemoryPlan plan;
  plan.add(MemoryCategory::weights, dtype, flat_elements(config));
  add_decoder(plan, config, dtype, config.seq_len, chunk, ops);
  return plan;
}

}  // namespace lathe
