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
// What is not hidden is the way of the embeddings' gradient, 32 % of GPT-2 124M's: wte is the head,
// too, and its gradient is final when all else is done. So nothing else may still be on its way
// then (buckets become smaller towards the end, ParameterLayout). Stage 1 halves that way (the
// weights' way back hides under the next forward pass, but for what the embedding needs), and
// reducing in bf16 halves it again. To reduce the head's share early and send only the rows of the
// tokens at the end was tried on the model of tests/parallel/step_model.h: a step of half a million
// tokens has more rows than the vocabulary.
//
// Both stages add the ranks' gradients in the same order and take the norm over the same blocks, so
// over lathe's own reductions they give the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/model/gpt2.h"
#include "src/model/optimizer.h"
#include "src/parallel/communicator.h"

namespace lathe {

// Two marks (Device::mark) between which a line did one thing.
struct Span {
  const char* what = "";
  bool waits =
      false;  // the device's line, waiting for communication; else a collective on its own line
  int from = 0, to = 0;
};

class DataParallel {
 public:
  // Takes memory from the arena if gradients are reduced in bf16.
  DataParallel(Communicator& communicator, Device& device, GPT2& model, const Optimizer& optimizer,
               const StepState& state, bool reduce_bf16, Arena& arena);
  DataParallel(const DataParallel&) = delete;
  DataParallel& operator=(const DataParallel&) = delete;

  static constexpr int kSlots = 2;  // of marks: two steps may be under way

  // One step, in this order; what is between them is the model's and the optimizer's. May be
  // recorded. Before the first forward pass:
  void begin_step(int slot);
  // What the first micro-step's forward pass calls, and the last micro-step's backward pass (only
  // that one's gradients are those of the step). Empty where there is one rank
  // that talks to nobody.
  const WeightsNeeded& weights_needed() const { return weights_needed_; }
  const GradientReady& gradient_ready() const { return gradient_ready_; }
  // The optimizer's gradients and the step's loss are those of all ranks for what the device is
  // given from here on; but of the embeddings' gradient, at stage 0, only this rank's share.
  void finish_gradients();
  // So are the sums of squares, of which each rank has brought those of its own share.
  void add_up_squares();
  // What the optimizer's update calls. Empty where it need not.
  const EmbeddingsNeeded& embeddings_needed() const { return embeddings_needed_; }

  // Outside of a step. ZeRO-1: the model's weights are what the ranks' optimizers last made them.
  void gather_weights();
  // results->loss += the other ranks'.
  void add_up_loss();

  // Of the step that last used this slot.
  std::span<const Span> spans(int slot) const { return spans_.at(static_cast<size_t>(slot)); }

 private:
  Ticket gather_bucket(size_t b);
  void finish_embeddings();
  void reduce_bucket(size_t b);
  void need(int64_t layer);
  void wait_for(Ticket ticket, const char* what);
  template <typename Collective>
  Ticket spanned(const char* what, const Collective& collective);
  int next_span(const char* what, bool waits);
  Tensor range(const Tensor& flat, const Bucket& bucket) const {
    return flat.rows(bucket.begin, bucket.elements());
  }
  // This rank's share of a bucket, in buffers like the optimizer's.
  Tensor share(const Tensor& of, size_t b) const {
    return of.rows(optimizer_.share()[b].local, optimizer_.share()[b].elements);
  }
  const std::vector<Bucket>& buckets() const { return model_.layout().buckets; }
  const char* name_of(size_t b) const { return buckets()[b].name.c_str(); }
  bool scattered(size_t b) const { return optimizer_.sharded() || b == 0; }

  Communicator& communicator_;
  bool active_;  // not where a rank is by itself and nobody asked for a library
  Device& device_;
  GPT2& model_;
  const Optimizer& optimizer_;
  Tensor loss_;    // fp64 [2], in the step's results: loss, stop_votes
  Tensor staged_;  // bf16: gradients on their way
  Tensor sums_;    // where they arrive: like the optimizer's gradients
  WeightsNeeded weights_needed_;
  GradientReady gradient_ready_;
  EmbeddingsNeeded embeddings_needed_;
  std::vector<Ticket> gathered_, reduced_;  // of the buckets
  Ticket weights_seen_ = 0;                 // the last gather that the device has waited for
  Ticket loss_reduced_ = 0, embeddings_gathered_ = 0;
  int first_mark_ = 0, slot_ = 0, next_mark_ = 0;
  std::array<std::vector<Span>, kSlots> spans_;
};

}  // namespace lathe
