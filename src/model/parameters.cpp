#include "src/model/parameters.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "kernels/device/round.h"

namespace lathe {

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  const int64_t c = config.n_embd;
  const float std = kInitStd;
  const float residual_std = std / std::sqrt(2.0f * static_cast<float>(config.n_layer));

  std::vector<ParameterSpec> specs;
  bool behind_layernorm = false;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns, float init_std,
                          int64_t layer, Split split) {
    const bool cut = layer >= 0 && !behind_layernorm;
    specs.push_back({name + ".weight", {rows, columns}, true, init_std, 0, layer, cut, split});
    behind_layernorm = false;
  };
  // What is added after a sum over rows is added once, so every rank has all of it.
  const auto bias = [&](const std::string& name, int64_t elements, int64_t layer, Split of_matrix) {
    const Split split = of_matrix.along == Split::columns ? of_matrix : Split{};
    if (config.bias)
      specs.push_back({name + ".bias", {elements}, false, 0, 0, layer, false, split});
  };
  const auto layernorm = [&](const std::string& name, int64_t layer) {
    specs.push_back({name + ".weight", {c}, false, 0, 1, layer, layer >= 0});
    bias(name, c, layer, {});
    behind_layernorm = true;
  };
  const auto linear = [&](const std::string& name, int64_t in, int64_t out, float init_std,
                          int64_t layer, Split split) {
    matrix(name, in, out, init_std, layer, split);
    bias(name, out, layer, split);
  };
  constexpr Split kRows{Split::rows}, kColumns{Split::columns}, kQkv{Split::columns, 3};

  matrix("wte", config.vocab_size, c, std, -1, kRows);
  matrix("wpe", config.seq_len, c, std, -1, {});
  for (int64_t l = 0; l < config.n_layer; ++l) {
    const std::string h = "h." + std::to_string(l);
    layernorm(h + ".ln_1", l);
    linear(h + ".attn.c_attn", c, 3 * c, std, l, kQkv);
    linear(h + ".attn.c_proj", c, c, residual_std, l, kRows);
    layernorm(h + ".ln_2", l);
    linear(h + ".mlp.c_fc", c, 4 * c, std, l, kColumns);
    linear(h + ".mlp.c_proj", 4 * c, c, residual_std, l, kRows);
  }
  layernorm("ln_f", -1);
  return specs;
}

namespace {

// Elements in the flat buffer, without the padding of buckets.
int64_t aligned_elements(const ParameterSpec& spec) {
  return round_up(spec.shape.elements(), kParameterAlignment);
}

// 1 for each of `specs` that starts a bucket, else 0. Buckets fill in the order of the backward
// pass, from the end down. The step waits for the last buckets, so towards the end a bucket closes
// earlier: when it holds more than all that is left, unless it is too small to be worth a message.
std::vector<char> bucket_starts(const std::vector<ParameterSpec>& specs, const Sharding& sharding) {
  const int64_t least_elements = sharding.bucket_elements;
  std::vector<char> starts(specs.size());
  int64_t left = 0, held = 0;
  for (const ParameterSpec& spec : specs) {
    if (spec.layer >= 0) left += aligned_elements(spec);
  }
  for (size_t i = specs.size(); i-- > 0;) {
    if (specs[i].layer < 0) continue;
    held += aligned_elements(specs[i]);
    left -= aligned_elements(specs[i]);
    const bool half = held > left && held >= least_elements / 8;
    const bool layer_starts = sharding.whole_layers && specs[i].layer != specs[i - 1].layer;
    const bool full = held >= least_elements || half || layer_starts || left == 0;
    if (!full || !specs[i].cut) continue;
    starts[i] = 1;
    held = 0;
  }
  return starts;
}

// For h.3.ln_2.weight: h.3.ln_2.
std::string module_of(const ParameterSpec& spec) {
  return spec.name.substr(0, spec.name.rfind('.'));
}

}  // namespace

ParameterLayout::ParameterLayout(const ModelConfig& config, const Sharding& sharding)
    : ranks(sharding.ranks) {
  std::vector<ParameterSpec> specs = parameter_specs(config);
  const std::vector<char> starts = bucket_starts(specs, sharding);
  const int64_t unit = ranks > 1 ? ranks * kParameterAlignment : 1;
  int64_t padding = 0;  // of the buckets before
  const auto close_bucket = [&] {
    Bucket& bucket = buckets.back();
    bucket.end = round_up(elements, unit);
    padding += bucket.end - elements;
    elements = bucket.end;
    const std::string last = module_of(slots.back().spec);
    if (bucket.first_layer >= 0 && bucket.name != last) bucket.name += " to " + last;
  };
  buckets.push_back({.name = "embeddings"});
  for (size_t i = 0; i < specs.size(); ++i) {
    if (starts[i]) {
      close_bucket();
      buckets.push_back({.begin = elements,
                         .first_layer = specs[i].layer,
                         .name = module_of(specs[i]),
                         .first_number = elements - padding});
    }
    bucket_of_slot.push_back(buckets.size() - 1);
    Shape padded = specs[i].shape;
    if (specs[i].name == "wte.weight") padded.dim[0] = config.padded_vocab_size();
    slots.push_back({std::move(specs[i]), elements, padded});
    elements += round_up(padded.elements(), kParameterAlignment);
  }
  close_bucket();
}

std::vector<ShardPart> ParameterLayout::whole() const {
  std::vector<ShardPart> parts;
  for (const Bucket& bucket : buckets)
    parts.push_back({bucket.begin, bucket.begin, bucket.elements(), bucket.first_number});
  return parts;
}

std::vector<ShardPart> ParameterLayout::share(int64_t rank) const {
  LATHE_CHECK(rank >= 0 && rank < ranks);
  std::vector<ShardPart> parts;
  int64_t local = 0;
  for (const Bucket& bucket : buckets) {
    const int64_t share = bucket.elements() / ranks, before = rank * share;
    parts.push_back({bucket.begin + before, local, share, bucket.first_number + before});
    local += share;
  }
  return parts;
}

std::vector<OptimizerSegment> ParameterLayout::segments(float weight_decay,
                                                        std::span<const ShardPart> parts) const {
  std::vector<OptimizerSegment> segments;
  bool decayed = false;  // the last segment; weight_decay may be zero
  for (const ShardPart& part : parts) {
    const int64_t shift = part.begin - part.local;
    for (size_t i = 0; i < slots.size(); ++i) {
      const int64_t slot_end = i + 1 < slots.size() ? slots[i + 1].offset : elements;
      const int64_t begin = std::max(slots[i].offset, part.begin) - shift;
      const int64_t end = std::min(slot_end, part.begin + part.elements) - shift;
      if (begin >= end) continue;
      const bool decays = slots[i].spec.decay;
      const int64_t to_number = part.number - part.local;
      if (!segments.empty() && decays == decayed && segments.back().end == begin &&
          segments.back().shift == to_number) {
        segments.back().end = end;
      } else {
        segments.push_back({begin, end, decays ? weight_decay : 0, to_number});
      }
      decayed = decays;
    }
  }
  return segments;
}

void Placement::add(int64_t begin, const Tensor& memory) {
  LATHE_CHECK(runs_.empty() || begin >= runs_.back().begin + runs_.back().memory.elements());
  runs_.push_back({begin, memory});
}

Tensor Placement::at(int64_t begin, int64_t elements) const {
  const auto next = std::ranges::upper_bound(runs_, begin, {}, &Run::begin);
  LATHE_CHECK(next != runs_.begin());
  const Run& run = *std::prev(next);
  return run.memory.rows(begin - run.begin, elements);
}

ModelParameters::ModelParameters(const ParameterLayout& layout, const Tensor& flat_buffer)
    : ModelParameters(layout, [&] {
        LATHE_CHECK(flat_buffer.elements() == layout.elements);
        Placement all;
        all.add(0, flat_buffer);
        return all;
      }()) {
  flat = flat_buffer;
}

ModelParameters::ModelParameters(const ParameterLayout& layout, const Placement& memory) {
  size_t next = 0;
  const auto take = [&](const std::string& suffix) -> Tensor {
    if (next == layout.slots.size()) return {};
    const ParameterSlot& slot = layout.slots[next];
    if (!slot.spec.name.ends_with(suffix)) return {};
    ++next;
    return memory.at(slot.offset, slot.padded_shape.elements()).reshaped(slot.padded_shape);
  };
  wte = take("wte.weight");
  wpe = take("wpe.weight");
  while (layout.slots[next].spec.layer >= 0) {
    LayerParameters layer;
    layer.ln_1_slot = next;
    layer.ln_1_weight = take("ln_1.weight");
    layer.ln_1_bias = take("ln_1.bias");
    layer.attn_weight = take("c_attn.weight");
    layer.attn_bias = take("c_attn.bias");
    layer.attn_proj_slot = next;
    layer.attn_proj_weight = take("c_proj.weight");
    layer.attn_proj_bias = take("c_proj.bias");
    layer.ln_2_slot = next;
    layer.ln_2_weight = take("ln_2.weight");
    layer.ln_2_bias = take("ln_2.bias");
    layer.fc_weight = take("c_fc.weight");
    layer.fc_bias = take("c_fc.bias");
    layer.mlp_proj_slot = next;
    layer.mlp_proj_weight = take("c_proj.weight");
    layer.mlp_proj_bias = take("c_proj.bias");
    layers.push_back(layer);
  }
  ln_f_slot = next;
  ln_f_weight = take("ln_f.weight");
  ln_f_bias = take("ln_f.bias");
  LATHE_CHECK(next == layout.slots.size());
}

}  // namespace lathe
