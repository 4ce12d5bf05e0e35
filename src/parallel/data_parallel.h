// Data parallelism: each rank computes the gradients of its part of the batch. The store sums them
// over the ranks while the backward pass still runs. ZeRO (Rajbhandari et al., "ZeRO: Memory
// optimizations toward training trillion parameter models", 2020) divides more and more among the
// ranks:
//
//   stage  a rank keeps its share of         and of all, for a short time
//   0      nothing: every rank has all
//   1      masters and moments
//   2      also gradients                    the gradients of a few buckets
//   3      also weights                      the weights of a few layers
//
// A step with several ranks, by queue:
//
//   device         | forward, layer by layer | backward, layer by layer | norm, AdamW |
//   communication  | weights (1 to 3)        | gradients; weights (3)   |
//
//   stage 0   gradients are all-reduced; every rank updates everything
//   stage 1   gradients are reduce-scattered; a rank updates its share of each bucket; weights are
//             all-gathered at the start of the next step, each bucket before its first layer needs
//             it
//   stage 2   the same, and gradients are reduced in every micro-step
//   stage 3   the same, and each layer's weights are gathered before each pass that reads them
//
// Nothing overlaps the reduction of the embeddings' gradient, 32 % of the gradients of the 124M
// model: wte is also the head, so this gradient is final last. All other buckets should be reduced
// by then, so buckets become smaller towards the end (ParameterLayout). Stage 1 halves this exposed
// traffic, because gathering the weights overlaps the next forward pass, except for what the
// embedding needs. Reducing in bf16 halves it again. Reducing the head's share early, and at the
// end only the rows of the step's tokens, did not help on the model of tests/parallel/step_model.h:
// a step of half a million tokens has more rows than the vocabulary.
//
// All stages add the ranks' gradients in the same order, and the norm is exact. So with lathe's own
// reductions they give the same bits, if they reduce equally often: with one micro-step a step, or
// with the same --reduce-each.
#pragma once

#include <cstdint>
#include <memory>

#include "src/comm/communicator.h"
#include "src/model/parameter_store.h"

namespace lathe {

inline constexpr int64_t kMostZeroStage = 3;

struct DataParallelOptions {
  int64_t bucket_elements = Sharding().bucket_elements;  // the smallest bucket of gradients
  int64_t zero_stage = 0;
  // Layers whose weights are there at once (stage 3; with all layers it keeps everything, like
  // stage 2). If gradients are reduced each micro-step, those of one bucket more are there at once.
  int64_t zero_slots = 2;
  bool reduce_each_micro_step = false;  // stages 2 and 3 need it
  bool reduce_bf16 = false;             // reduce gradients in bf16
  // Where this rank's share of the layers' weights lies (stage 3).
  MemorySpace weights = MemorySpace::device;
};
// The division of the parameters among `ranks`.
Sharding sharding_of(const DataParallelOptions& options, int64_t ranks);

// Whether gradients are reduced, and added up, in every micro-step. A single rank whose weights lie
// on its device never does so.
bool reduces_each_micro_step(const DataParallelOptions& options, const Communicator& communicator);

// The parameter store of this rank. It also sums `loss` over the ranks: fp64 [2], loss and stop
// votes (StepState::loss_and_votes).
std::unique_ptr<ParameterStore> make_parameter_store(const ModelConfig& config,
                                                     const DataParallelOptions& options,
                                                     Communicator& communicator, Device& device,
                                                     const Ops& ops, const Tensor& loss,
                                                     Arena& arena);

}  // namespace lathe
