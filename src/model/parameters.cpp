#include "src/model/parameters.h"

#include <cmath>

namespace lathe {

std::vector<ParameterSpec> parameter_specs(const GPT2Config& config) {
  const int64_t c = config.n_embd;
  const float std = kInitStd;
  const float residual_std = std / std::sqrt(2.0f * static_cast<float>(config.n_layer));

  std::vector<ParameterSpec> specs;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns, float init_std,
                          int64_t layer) {
    specs.push_back({name + ".weight", {rows, columns}, true, init_std, 0, layer});
  };
  const auto bias = [&](const std::string& name, int64_t elements, int64_t layer) {
    if (config.bias) specs.push_back({name + ".bias", {elements}, false, 0, 0, layer});
  };
  const auto layernorm = [&](const std::string& name, int64_t layer) {
    specs.push_back({name + ".weight", {c}, false, 0, 1, layer});
    bias(name, c, layer);
  };
  const auto linear = [&](const std::string& name, int64_t in, int64_t out, float init_std,
                          int64_t layer) {
    matrix(name, in, out, init_std, layer);
    bias(name, out, layer);
  };

  matrix("wte", config.vocab_size, c, std, -1);
  matrix("wpe", config.seq_len, c, std, -1);
  for (int64_t l = 0; l < config.n_layer; ++l) {
    const std::string h = "h." + std::to_string(l);
    layernorm(h + ".ln_1", l);
    linear(h + ".attn.c_attn", c, 3 * c, std, l);
    linear(h + ".attn.c_proj", c, c, residual_std, l);
    layernorm(h + ".ln_2", l);
    linear(h + ".mlp.c_fc", c, 4 * c, std, l);
    linear(h + ".mlp.c_proj", 4 * c, c, residual_std, l);
  }
  layernorm("ln_f", -1);
  return specs;
}

ParameterLayout::ParameterLayout(const GPT2Config& config) {
  for (ParameterSpec& spec : parameter_specs(config)) {
    Shape padded = spec.shape;
    if (spec.name == "wte.weight") padded.dim[0] = config.padded_vocab_size();
    slots.push_back({std::move(spec), elements, padded});
    elements +=
        (padded.elements() + kParameterAlignment - 1) / kParameterAlignment * kParameterAlignment;
  }
}

std::vector<OptimizerSegment> ParameterLayout::segments(float weight_decay) const {
  std::vector<OptimizerSegment> segments;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t end = i + 1 < slots.size() ? slots[i + 1].offset : elements;
    const bool decays = slots[i].spec.decay;
    if (i > 0 && slots[i - 1].spec.decay == decays) {
      segments.back().end = end;
    } else {
      segments.push_back({slots[i].offset, end, decays ? weight_decay : 0});
    }
  }
  return segments;
}

GPT2Parameters::GPT2Parameters(const ParameterLayout& layout, const Tensor& flat_buffer)
    : flat(flat_buffer) {
  LATHE_CHECK(flat.elements() == layout.elements);
  size_t next = 0;
  const auto take = [&](const std::string& suffix) -> Tensor {
    if (next == layout.slots.size()) return {};
    const ParameterSlot& slot = layout.slots[next];
    if (!slot.spec.name.ends_with(suffix)) return {};
    ++next;
    void* data = static_cast<char*>(flat.data) + slot.offset * size_of(flat.dtype);
    return Tensor{data, flat.dtype, slot.padded_shape};
  };
  wte = take("wte.weight");
  wpe = take("wpe.weight");
  while (layout.slots[next].spec.layer >= 0) {
    layers.push_back({.ln_1_weight = take("ln_1.weight"),
                      .ln_1_bias = take("ln_1.bias"),
                      .attn_weight = take("c_attn.weight"),
                      .attn_bias = take("c_attn.bias"),
                      .attn_proj_weight = take("c_proj.weight"),
                      .attn_proj_bias = take("c_proj.bias"),
                      .ln_2_weight = take("ln_2.weight"),
                      .ln_2_bias = take("ln_2.bias"),
                      .fc_weight = take("c_fc.weight"),
                      .fc_bias = take("c_fc.bias"),
                      .mlp_proj_weight = take("c_proj.weight"),
                      .mlp_proj_bias = take("c_proj.bias")});
  }
  ln_f_weight = take("ln_f.weight");
  ln_f_bias = take("ln_f.bias");
  LATHE_CHECK(next == layout.slots.size());
}

}  // namespace lathe
