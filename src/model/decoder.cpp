#include "src/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/imagined_device.h"
#include "kernels/philox.h"
#include "src/model/blocks.h"

namespace lathe {

Decoder::Decoder(const ModelConfig& config, ParameterStore& parameters, int64_t capacity,
                 int64_t chunk, Device& device, Arena& arena)
    : config_(config),
      parameters_(parameters),
      weights_(parameters.weights()),
      device_(device),
      ops_(&device.ops(weights_.wte.dtype)),
      capacity_(capacity),
      chunk_(chunk) {
  LATHE_CHECK(capacity >= 1 && capacity <= config.seq_len && chunk >= 1 && chunk <= capacity);
  const DType dtype = weights_.wte.dtype, acc = accumulator_of(dtype);
  const int64_t c = config.n_embd;
  const auto cache = [&](DType type, Shape shape) {
    return arena.allocate(MemoryCategory::cache, type, shape);
  };
  for (int64_t l = 0; l < config.n_layer; ++l) {
    keys_.push_back(cache(dtype, {1, capacity, c}));
    values_.push_back(cache(dtype, {1, capacity, c}));
  }
  tokens_ = cache(DType::int32, {1, chunk});
  for (Tensor* x : {&x_, &residual_, &branch_, &hidden_}) *x = cache(dtype, {1, chunk, c});
  for (Tensor* x : {&wide_, &wide2_}) *x = cache(dtype, {1, chunk, 4 * c});
  for (Tensor* x : {&mean_, &rstd_}) *x = cache(acc, {1, chunk});
  logits_ = cache(acc, {1, config.vocab_size});
  host_logits_.resize(logits_.bytes());
  result_.resize(config.vocab_size);

  const RecordingOps recorder(*ops_);
  const Ops* real = std::exchange(ops_, &recorder);
  for (int64_t tokens : {chunk, int64_t{1}}) {
    past_ = capacity - tokens;
    run(tokens);
  }
  past_ = 0;
  sizing_ = false;
  ops_ = real;
  workspace_ = cache(DType::uint8, {static_cast<int64_t>(recorder.workspace())});
}

// The same blocks as in training, on one set of activations that all layers share; the residual
// stream alternates between two tensors.
void Decoder::run(int64_t t) {
  const int64_t c = config_.n_embd;
  const auto view = [t](const Tensor& buffer, int64_t columns) {
    return Tensor{buffer.data, buffer.dtype, {1, t, columns}};
  };
  const Blocks blocks{*ops_, workspace_};
  LayerActivations a;
  a.ln_1 = a.ln_2 = a.attention = view(hidden_, c);
  a.ln_1_mean = a.ln_2_mean = Tensor{mean_.data, mean_.dtype, {1, t}};
  a.ln_1_rstd = a.ln_2_rstd = Tensor{rstd_.data, rstd_.dtype, {1, t}};
  a.qkv = view(wide_, 3 * c);
  a.pre_gelu = Blocks::rows(view(wide_, 4 * c));
  a.gelu = Blocks::rows(view(wide2_, 4 * c));
  const Tensor branch = view(branch_, c);
  Tensor stream = view(x_, c), sum = view(residual_, c);
  const auto added = [&] {  // the next LayerNorm adds the branch and stores the sum
    const Residual residual{.stream = stream, .branch = branch, .sum = sum};
    std::swap(stream, sum);
    return residual;
  };

  const auto with = [this](int64_t unit, const auto& body) {
    if (!sizing_) parameters_.need(Pass::forward, unit);
    body();
    if (!sizing_) parameters_.release(Pass::forward, unit);
  };
  const auto embed = [&] {
    ops_->run(EmbeddingForward{.x_btc = stream,
                               .tokens_bt = Tensor{tokens_.data, tokens_.dtype, {1, t}},
                               .wte_vc = weights_.wte,
                               .wpe_tc = weights_.wpe,
                               .first_position = past_},
              workspace_);
  };
  with(kEmbeddings, embed);
  for (int64_t l = 0; l < config_.n_layer; ++l) {
    const LayerParameters& w = weights_.layers[l];
    const auto attend = [&] {
      ops_->run(AttentionCached{.out_btc = a.attention,
                                .keys_bmc = keys_[l],
                                .values_bmc = values_[l],
                                .qkv_bt3c = a.qkv,
                                .n_head = config_.n_head,
                                .past = past_},
                workspace_);
    };
    with(l, [&] {
      blocks.attention(w, a, l == 0 ? Residual{.stream = stream} : added(), attend, branch);
      blocks.mlp(w, a, added(), config_.gelu);
      blocks.mlp_projection(w, a, branch);
    });
  }
  with(config_.n_layer, [&] {
    blocks.norm(added(), {a.ln_1, a.ln_1_mean, a.ln_1_rstd}, weights_.ln_f_weight,
                weights_.ln_f_bias);
  });
  const auto head = [&] {
    ops_->run(Logits{.logits_nv = logits_,
                     .x_nc = Blocks::rows(a.ln_1).rows(t - 1, 1),
                     .wte_vc = weights_.wte,
                     .vocab_size = config_.vocab_size},
              workspace_);
  };
  with(kEmbeddings, head);
}

std::span<const double> Decoder::append(std::span<const int32_t> tokens) {
  LATHE_CHECK(!tokens.empty() && past_ + static_cast<int64_t>(tokens.size()) <= capacity_);
  while (!tokens.empty()) {
    const auto part = tokens.first(std::min<size_t>(tokens.size(), chunk_));
    const int64_t t = static_cast<int64_t>(part.size());
    device_.upload(Tensor{tokens_.data, DType::int32, {1, t}}, part.data());
    parameters_.begin_forward();
    run(t);
    past_ += t;
    tokens = tokens.subspan(part.size());
  }
  device_.download(host_logits_.data(), logits_);
  if (logits_.dtype == DType::fp64) {
    std::copy_n(reinterpret_cast<const double*>(host_logits_.data()), result_.size(),
                result_.begin());
  } else {
    std::copy_n(reinterpret_cast<const float*>(host_logits_.data()), result_.size(),
                result_.begin());
  }
  return result_;
}

Sampler::Sampler(const ModelConfig& config, DType dtype, int64_t chunk, Device& device,
                 Arena& arena)
    : parameters(config, device.ops(dtype), arena),
      decoder(config, parameters, config.seq_len, chunk, device, arena) {}

MemoryPlan Sampler::plan(const ModelConfig& config, DType dtype, int64_t chunk, Device& device) {
  return count_memory(device, [&](Device& imagined, Arena& arena) {
    Sampler(config, dtype, chunk, imagined, arena);
  });
}

int32_t sample_token(std::span<const double> logits, const SamplingConfig& config,
                     int64_t position) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  if (config.temperature == 0) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t keep =
      config.top_k > 0 ? std::min<size_t>(config.top_k, order.size()) : order.size();
  if (keep < order.size() || config.top_p < 1) {
    const auto larger = [&](int32_t a, int32_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + keep, order.end(), larger);
    order.resize(keep);
  }

  std::vector<double> weights(keep);
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    weights[i] = std::exp((logits[order[i]] - largest) / config.temperature);
    sum += weights[i];
  }
  double kept = 0;
  size_t count = 0;
  while (count < keep && (count == 0 || kept < config.top_p * sum)) kept += weights[count++];

  const auto random = philox(config.seed, static_cast<uint64_t>(position), kPhiloxSiteSample, 0);
  const double uniform = ((random[0] >> 5) * 67108864.0 + (random[1] >> 6)) / 9007199254740992.0;
  double left = uniform * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace lathe
