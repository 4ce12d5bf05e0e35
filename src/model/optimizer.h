// AdamW with fp32 masters over the flat parameters, and the state of the step in flight.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/parameters.h"

namespace lathe {

// The two small structs in device memory through which a step talks to the operations.
class StepState {
 public:
  StepState(Device& device, Arena& arena, int64_t micro_steps);

  // Tells the device about a step: one StepInputs for each micro-step.
  void begin(const Ops& ops, std::span<const StepInputs> inputs);
  // Reads back what became of it; waits for the device.
  StepResults results() const;
  // The same without standing still: request_results enqueues the copy, collect_results waits for
  // the oldest copy that was requested, and for nothing behind it. At most kReadBacks at a time.
  void request_results();
  StepResults collect_results();
  int64_t requested() const { return requested_ - collected_; }  // and not yet collected
  void set_results(const StepResults& results);

  const StepInputs* inputs(int64_t micro_step) const {
    return static_cast<const StepInputs*>(inputs_.data) + micro_step;
  }
  // Loss and stop votes in device_results(), fp64 [2]: the ranks sum them together.
  Tensor loss_and_votes() const;
  StepResults* device_results() const { return static_cast<StepResults*>(results_.data); }

 private:
  Device& device_;
  Tensor inputs_, results_;  // uint8
  int64_t requested_ = 0, collected_ = 0;
};

struct OptimizerConfig {
  float weight_decay = 0.1f;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  double grad_clip = 1;              // 0: no clipping
  bool stochastic_rounding = false;  // of masters to bf16 weights
};

// Which part of the parameters an optimizer keeps: of several ranks each its share of every bucket
// (ZeRO-1), or all of them. The norm is always taken by shares.
struct Ownership {
  int64_t rank = 0;
  bool sharded = false;
};

// The update is about to read the gradients of the embeddings, which come last.
using EmbeddingsNeeded = std::function<void()>;

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, const GPT2Parameters& weights,
            const GPT2Parameters& gradients, const ParameterLayout& layout, Device& device,
            Arena& arena, const Ownership& ownership = {});

  // Norm, clipping and update, with no word from the host in between: a step whose loss or gradient
  // norm is not finite leaves weights and moments as they are.
  void step(const Ops& ops, const StepState& state) const;
  // Its halves: square_sums() of the blocks in this rank's share, zeros for the others; then, with
  // the sums of all ranks there, the rest. `needed` may be empty.
  void sum_squares(const Ops& ops) const;
  void update(const Ops& ops, const StepState& state, const EmbeddingsNeeded& needed = {}) const;

  const OptimizerConfig& config() const { return config_; }

  // What it owns. Its tensors are flat over these parts, one after the other.
  const std::vector<ShardPart>& shard() const { return shard_; }
  // This rank's share of every bucket, in these tensors: all of them, or with all owned a part.
  const std::vector<ShardPart>& share() const { return share_; }
  bool sharded() const { return sharded_; }
  // fp32 masters (the weights themselves where those are not bf16 and all are owned) and moments.
  const Tensor& masters() const { return masters_; }
  const Tensor& m() const { return m_; }
  const Tensor& v() const { return v_; }
  // The gradients it reads: the model's where all are owned.
  const Tensor& gradients() const { return gradients_; }
  // The updated weights in the model's number type: the model's own where all are owned.
  const Tensor& weights() const { return weights_ ? weights_ : masters_; }
  const Tensor& square_sums() const { return square_sums_; }  // fp64, of the blocks of all ranks

 private:
  OptimizerConfig config_;
  Device& device_;
  bool sharded_;
  std::vector<ShardPart> shard_, share_;
  int64_t ranks_;
  Tensor weights_;  // absent where masters_ are the weights
  Tensor gradients_, masters_, m_, v_, square_sums_;
  Tensor segments_;  // OptimizerSegment, those of each launch one after the other
  struct Launch {
    int64_t begin = 0, elements = 0;  // of the flat tensors
    int64_t segment_count = 0;
  };
  std::vector<Launch> launches_;  // of AdamW: the embeddings in the last
};

}  // namespace lathe
