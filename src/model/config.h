// The sizes and options that define a model.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/round.h"
#include "kernels/ops.h"

namespace lathe {

struct ModelConfig {
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_embd = 768;
  int64_t vocab_size = 50257;
  int64_t seq_len = 1024;  // the longest context: rows of the position embedding
  bool bias = true;        // in LayerNorms and linear layers
  float dropout = 0;
  Gelu gelu = Gelu::tanh;

  int64_t head_size() const { return n_embd / n_head; }
  // Rows of the token embedding in memory: the vocabulary rounded up so that matmuls stay aligned.
  // Files have vocab_size rows. The padding is zero, is never predicted and never gets a gradient.
  int64_t padded_vocab_size() const {
    const int64_t multiple = vocab_size >= 4096 ? 128 : 16;
    return round_up(vocab_size, multiple);
  }
  // FLOPs of training on one token, 6 N + 6 L C T (N without position embeddings; the causal half
  // of attention), as MFU counts them. The forward pass is a third.
  double flops_per_token(int64_t seq_len) const;

  bool operator==(const ModelConfig&) const = default;
};

// Throws UserError that names the flag if a size is out of range or sizes do not divide.
void validate(const ModelConfig& config);

struct ParameterCounts {
  int64_t total = 0;  // without vocabulary padding
  int64_t without_position_embeddings = 0;
};
ParameterCounts count_parameters(const ModelConfig& config);

std::string_view name_of(Gelu gelu);

}  // namespace lathe
