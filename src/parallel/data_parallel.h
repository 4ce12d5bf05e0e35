// Data parallelism: each rank computes the gradients of its part of the batch. This store sums them
// over the ranks while the backward pass still runs. With ZeRO-1 (Rajbhandari et al., "ZeRO: Memory
// optimizations toward training trillion parameter models", 2020) each rank updates only its share
// of the parameters, and gathering the weights overlaps the next forward pass.
//
// A step with several ranks, by queue:
//
//   device         | forward, layer by layer | backward, layer by layer | norm, AdamW |
//   communication  | weights (ZeRO-1)        |   gradients of each bucket as it is final |
//
//   stage 0   gradients are all-reduced; every rank updates everything. The embeddings' gradients,
//             which are final last, are reduced in two halves: the norm needs only the
//             reduce-scatter, and the all-gather overlaps the update of the layers
//   stage 1   gradients are reduce-scattered; a rank updates its share of each bucket; weights are
//             all-gathered at the start of the next step, each bucket before its first layer needs
//             it
//
// Nothing overlaps the reduction of the embeddings' gradient, 32 % of the gradients of the 124M
// model: wte is also the head, so this gradient is final last. All other buckets should be reduced
// by then, so buckets become smaller towards the end (ParameterLayout). Stage 1 halves this exposed
// traffic, because gathering the weights overlaps the next forward pass, except for what the
// embedding needs. Reducing in bf16 halves it again. Reducing the head's share early, and at the
// end only the rows of the step's tokens, did not help on the model of tests/parallel/step_model.h:
// a step of half a million tokens has more rows than the vocabulary.
//
// Both stages add the ranks' gradients in the same order, and the norm is exact. So with lathe's
// own reductions they give the same bits.
#pragma once

#include <cstdint>
#include <memory>

#include "src/comm/communicator.h"
#include "src/model/parameter_store.h"

namespace lathe {

struct DataParallelOptions {
  int64_t bucket_elements = Sharding().bucket_elements;  // the smallest bucket of gradients
  int64_t zero_stage = 0;
  bool reduce_bf16 = false;  // reduce gradients in bf16
};

// The parameter store of this rank. It also sums `loss` over the ranks: fp64 [2], loss and stop
// votes (StepState::loss_and_votes).
std::unique_ptr<ParameterStore> make_parameter_store(const ModelConfig& config,
                                                     const DataParallelOptions& options,
                                                     Communicator& communicator, Device& device,
                                                     const Ops& ops, const Tensor& loss,
                                                     Arena& arena);

}  // namespace lathe
