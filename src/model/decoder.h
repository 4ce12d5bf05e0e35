// GPT-2 one token after another, with a KV cache.
#pragma once

#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/config.h"
#include "src/model/parameters.h"

namespace lathe {

// Reads the weights that somebody else owns (the model in training, or weights loaded for
// sampling).
class Decoder {
 public:
  // Takes the KV cache (capacity positions, at most config.seq_len) and activations for up to
  // `chunk` new tokens at a time from the arena.
  Decoder(const GPT2Config& config, const GPT2Parameters& weights, int64_t capacity, int64_t chunk,
          Device& device, Arena& arena);

  // Forgets everything.
  void reset() { past_ = 0; }
  int64_t past() const { return past_; }
  int64_t capacity() const { return capacity_; }

  // Appends tokens (past + tokens <= capacity, else CheckError) and returns the logits
  // [vocab_size] of what comes after the last of them; valid until the next call.
  std::span<const double> append(std::span<const int32_t> tokens);

 private:
  void run(int64_t tokens);

  GPT2Config config_;
  const GPT2Parameters& weights_;
  Device& device_;
  const Ops* ops_;
  int64_t capacity_, chunk_;
  int64_t past_ = 0;
  std::vector<Tensor> keys_, values_;  // per layer [1, capacity, C]
  Tensor tokens_, x_, residual_, branch_, hidden_, wide_, wide2_, mean_, rstd_, logits_, workspace_;
  std::vector<char> host_logits_;
  std::vector<double> result_;
};

// A decoder with its own weights: what sampling alone needs.
struct Sampler {
  // A context of config.seq_len; up to `chunk` new tokens at a time.
  Sampler(const GPT2Config& config, DType dtype, int64_t chunk, Device& device, Arena& arena);
  // The bytes of one with these arguments.
  static MemoryPlan plan(const GPT2Config& config, DType dtype, int64_t chunk, Device& device);

  ParameterLayout layout;
  GPT2Parameters weights;
  Decoder decoder;
};

// How the next token is drawn from logits: temperature 0 takes the largest; otherwise the top_k
// largest (0: all) are kept, then the smallest set whose probability reaches top_p (1: all).
struct SamplingConfig {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

// The token at `position` of a text: a function of logits, seed and position alone.
int32_t sample_token(std::span<const double> logits, const SamplingConfig& config,
                     int64_t position);

}  // namespace lathe
