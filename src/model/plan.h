// How much memory a run needs, from its sizes alone: what --dry-run prints, and what the arena is
// made of. Computed apart from the model, which must come to the same bytes.
#pragma once

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/activations.h"
#include "src/model/config.h"
#include "src/model/parameters.h"

namespace lathe {

struct RunShape {
  DType dtype = DType::fp32;
  int64_t batch_size = 1;   // sequences of a micro-step
  int64_t seq_len = 1;      // tokens of a sequence
  int64_t micro_steps = 1;  // of a step
  int64_t decode_len = 0;   // positions of the KV cache for samples; 0: none
  Recompute recompute = Recompute::none;
  Sharding sharding;  // among ranks
  int64_t rank = 0;
  bool sharded = false;        // ZeRO-1: each rank keeps its share of the optimizer's state
  bool reduce_bf16 = false;    // gradients cross the network as bf16
  int64_t logits_at_once = 0;  // about; 0: the device's choice
};

// Bytes by category of a training run on one rank: GPT2, Optimizer, StepState, micro-batch,
// DataParallel and Decoder together.
MemoryPlan plan_training(const GPT2Config& config, const RunShape& shape, const Ops& ops);

// The same with as many logits at once as `memory` bytes allow, 2^26 to 2^30, if the shape
// leaves that open (0) and memory is known (not 0); the shape then says how many.
MemoryPlan plan_training_within(size_t memory, const GPT2Config& config, RunShape& shape,
                                const Ops& ops);

// The same for sampling alone: weights, KV cache and the activations of up to `chunk` tokens.
MemoryPlan plan_decoding(const GPT2Config& config, DType dtype, int64_t chunk, const Ops& ops);

}  // namespace lathe
