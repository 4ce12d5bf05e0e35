#include "src/model/config.h"

#include "src/model/parameters.h"

namespace lathe {

namespace {

void require_in(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw UserError("{} is {}, but must be between {} and {}", flag, value, low, high);
  }
}

}  // namespace

double ModelConfig::flops_per_token(int64_t tokens) const {
  const double n = static_cast<double>(count_parameters(*this).without_position_embeddings);
  return 6.0 * n + 6.0 * static_cast<double>(n_layer * n_embd * tokens);
}

void validate(const ModelConfig& config) {
  require_in("--n-layer", config.n_layer, 1, 1024);
  require_in("--n-head", config.n_head, 1, 1024);
  require_in("--n-embd", config.n_embd, 1, 65536);
  require_in("--vocab-size", config.vocab_size, 1, 65536);
  require_in("--seq-len", config.seq_len, 1, 1 << 20);
  if (config.n_embd % config.n_head != 0) {
    throw UserError("--n-embd {} is not divisible by --n-head {}: choose a multiple", config.n_embd,
                    config.n_head);
  }
  if (config.head_size() > 256) {
    throw UserError(
        "--n-embd {} over --n-head {} gives heads of {} channels; the limit is 256: use more heads",
        config.n_embd, config.n_head, config.head_size());
  }
  if (!(config.dropout >= 0 && config.dropout < 1)) {
    throw UserError("--dropout is {}, but must be at least 0 and below 1", config.dropout);
  }
}

ParameterCounts count_parameters(const ModelConfig& config) {
  ParameterCounts counts;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    counts.total += spec.shape.elements();
  }
  counts.without_position_embeddings = counts.total - config.seq_len * config.n_embd;
  return counts;
}

std::string_view name_of(Gelu gelu) {
  switch (gelu) {
    case Gelu::none:
      return "none";
    case Gelu::exact:
      return "exact";
    case Gelu::tanh:
      return "tanh";
  }
  return "?";
}

}  // namespace lathe
