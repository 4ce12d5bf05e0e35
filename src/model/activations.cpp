#include "src/model/activations.h"

namespace lathe {

std::string_view name_of(Recompute recompute) {
  switch (recompute) {
    case Recompute::none:
      return "none";
    case Recompute::gelu:
      return "gelu";
    case Recompute::layernorm:
      return "layernorm";
    case Recompute::block:
      return "block";
  }
  return "?";
}

namespace {

std::vector<LayerActivations> allocate_layers(const ModelConfig& config, DType dtype,
                                              int64_t batch_size, int64_t seq_len,
                                              Recompute recompute, Arena& arena) {
  const int64_t b = batch_size, t = seq_len, c = config.n_embd, h = config.n_head;
  const DType acc = accumulator_of(dtype);
  std::vector<LayerActivations> layers(static_cast<size_t>(config.n_layer));
  for (LayerActivations& layer : layers) {
    using Member = Tensor LayerActivations::*;
    const auto keep = [&](Member tensor, DType type, Shape shape) {
      layer.*tensor = arena.allocate(MemoryCategory::activations, type, shape);
    };
    // If `level` recomputes it, all layers share the first layer's tensor.
    const auto keep_below = [&](Recompute level, Member tensor, DType type, Shape shape) {
      if (recompute >= level && &layer != &layers.front()) {
        layer.*tensor = layers.front().*tensor;
      } else {
        keep(tensor, type, shape);
      }
    };
    using enum Recompute;
    keep_below(layernorm, &LayerActivations::ln_1, dtype, {b, t, c});
    keep_below(block, &LayerActivations::ln_1_mean, acc, {b, t});
    keep_below(block, &LayerActivations::ln_1_rstd, acc, {b, t});
    keep_below(block, &LayerActivations::qkv, dtype, {b, t, 3 * c});
    keep_below(block, &LayerActivations::attention, dtype, {b, t, c});
    keep_below(block, &LayerActivations::logsumexp, acc, {b, h, t});
    keep_below(block, &LayerActivations::residual_mid, dtype, {b, t, c});
    keep_below(layernorm, &LayerActivations::ln_2, dtype, {b, t, c});
    keep_below(block, &LayerActivations::ln_2_mean, acc, {b, t});
    keep_below(block, &LayerActivations::ln_2_rstd, acc, {b, t});
    keep_below(block, &LayerActivations::pre_gelu, dtype, {b * t, 4 * c});
    keep_below(gelu, &LayerActivations::gelu, dtype, {b * t, 4 * c});
  }
  return layers;
}

}  // namespace

Activations::Activations(const ModelConfig& config, DType dtype, int64_t b, int64_t t,
                         Recompute level, Arena& arena, bool offloads)
    : batch_size(b), seq_len(t), recompute(level) {
  LATHE_CHECK(!offloads || level == Recompute::block);
  LATHE_CHECK(t >= 1 && t <= config.seq_len && b >= 1);
  const auto allocate = [&](DType type, Shape shape) {
    return arena.allocate(MemoryCategory::activations, type, shape);
  };
  const DType acc = accumulator_of(dtype);
  const Shape btc{b, t, config.n_embd};
  if (offloads) offload = std::make_unique<InputOffload>(config.n_layer + 1, dtype, btc, arena);
  const auto input_of = [&](int64_t unit) {
    return offload ? offload->slot(unit) : allocate(dtype, btc);
  };
  embedded = input_of(0);
  layers = allocate_layers(config, dtype, b, t, level, arena);
  for (int64_t l = 0; l < config.n_layer; ++l)
    layers[static_cast<size_t>(l)].residual_out = input_of(l + 1);
  ln_f = allocate(dtype, {b, t, config.n_embd});
  ln_f_mean = allocate(acc, {b, t});
  ln_f_rstd = allocate(acc, {b, t});
  losses_n = allocate(acc, {b * t});
}

}  // namespace lathe
