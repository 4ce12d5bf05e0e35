// The model one token at a time, with a KV cache.
#pragma once

#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/config.h"
#include "src/model/parameter_store.h"

namespace lathe {

// Reads weights that it does not own.
class Decoder {
 public:
  // Allocates from the arena the KV cache (`capacity` positions, at most config.seq_len) and
  // activations for up to `chunk` new tokens at a time.
  Decoder(const ModelConfig& config, ParameterStore& parameters, int64_t capacity, int64_t chunk,
          Device& device, Arena& arena);

  // Empties the cache.
  void reset() { past_ = 0; }
  int64_t past() const { return past_; }
  int64_t capacity() const { return capacity_; }

  // Appends tokens (past + tokens <= capacity, otherwise CheckError) and returns the logits
  // [vocab_size] of the token after the last one; valid until the next call. If the store's weights
  // do not stay (ParameterStore::weights_stay), all ranks call this together.
  std::span<const double> append(std::span<const int32_t> tokens);

 private:
  void run(int64_t tokens);

  ModelConfig config_;
  ParameterStore& parameters_;
  const ModelParameters& weights_;  // the store's
  Device& device_;
  const Ops* ops_;
  bool sizing_ = true;  // the constructor runs without weights or tokens
  int64_t capacity_, chunk_;
  int64_t past_ = 0;
  std::vector<Tensor> keys_, values_;  // per layer [1, capacity, C]
  Tensor tokens_, x_, residual_, branch_, hidden_, wide_, wide2_, mean_, rstd_, logits_, workspace_;
  std::vector<char> host_logits_;
  std::vector<double> result_;
};

// A decoder with its own weights, for sampling without a trainer.
struct Sampler {
  // Context config.seq_len; up to `chunk` new tokens at a time.
  Sampler(const ModelConfig& config, DType dtype, int64_t chunk, Device& device, Arena& arena);
  // The bytes that one with these arguments takes.
  static MemoryPlan plan(const ModelConfig& config, DType dtype, int64_t chunk, Device& device);

  LoadedWeights parameters;
  Decoder decoder;
};

// How to draw the next token from logits. Temperature 0 takes the largest. Otherwise keeps the
// top_k largest (0: all), then the smallest set whose probability reaches top_p (1: all).
struct SamplingConfig {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

// The token at `position` of a text; depends only on logits, seed and position.
int32_t sample_token(std::span<const double> logits, const SamplingConfig& config,
                     int64_t position);

}  // namespace lathe
