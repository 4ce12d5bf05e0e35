// Data parallelism: each rank computes the gradients of its part of the batch, and what is here
// makes them the gradients of the whole batch while the backward pass still runs. With ZeRO-1
// (Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models",
// 2020) each rank updates its share of the parameters alone, and the next forward pass hides the
// way back.
//
// A step of several ranks, by the lines that it runs on:
//
//   device         | forward, layer by layer | backward, layer by layer | norm, AdamW |
//   communication  | weights (ZeRO-1)        |   gradients of each bucket as it is final |
//
//   stage 0   gradients are all-reduced; every rank updates everything. The last of them, those of
//             the embeddings, in two halves: reduce-scatter, which is all that the norm needs, and
//             all-gather, which the update of the layers hides
//   stage 1   gradients are reduce-scattered; a rank updates its share of each bucket; weights are
//             all-gathered at the start of the next step, each bucket before its first layer needs
//             it
//
// What is not hidden is the way of the embeddings' gradient, 32 % of those of the 124M model: wte
// is the head, too, and its gradient is final when all else is done. So nothing else may still be
// on its way then (buckets become smaller towards the end, ParameterLayout). Stage 1 halves that
// way (the weights' way back hides under the next forward pass, but for what the embedding needs),
// and reducing in bf16 halves it again. To reduce the head's share early and send only the rows of
// the tokens at the end was tried on the model of tests/parallel/step_model.h: a step of half a
// million tokens has more rows than the vocabulary.
//
// Both stages add the ranks' gradients in the same order and take the norm over the same blocks, so
// over lathe's own reductions they give the same bits.
#pragma once

#include <cstdint>
#include <memory>

#include "src/comm/communicator.h"
#include "src/model/parameter_store.h"

namespace lathe {

struct DataParallelOptions {
  int64_t bucket_elements = Sharding().bucket_elements;  // the smallest bucket of gradients
  int64_t zero_stage = 0;
  bool reduce_bf16 = false;  // gradients cross the network as bf16
};

// The store of this rank. `loss`: fp64 [2], loss and stop votes (StepState::loss_and_votes), which
// the ranks sum.
std::unique_ptr<ParameterStore> make_parameter_store(const ModelConfig& config,
                                                     const DataParallelOptions& options,
                                                     Communicator& communicator, Device& device,
                                                     const Ops& ops, const Tensor& loss,
                                                     Arena& arena);

}  // namespace lathe
