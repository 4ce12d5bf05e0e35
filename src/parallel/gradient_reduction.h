// Gradients: where the backward pass writes them, and how the ranks sum them.
//
// A bucket is reduced as soon as its last gradient is final, while the backward pass goes on. There
// are two forms:
//
//   each step        the backward pass adds up the gradients of all micro-steps, in memory for all
//                    of them; the last micro-step's are reduced
//   each micro-step  every micro-step overwrites its gradients, and its sums over the ranks are
//                    added to those before. The embeddings' gradients have memory of their own,
//                    which they need from the head, where the backward pass begins, to the
//                    embedding, where it ends. All other buckets share a few slots, in turn: bucket
//                    b lies in slot b - 1 modulo their number, and enters it when the former
//                    bucket's sums have left. A pass writes at most two buckets at a time, because
//                    an operation may give the bias of the next bucket; the third slot's reduction
//                    overlaps it
//
// The sums are this rank's share of each bucket or, if it updates everything, all of them. In the
// latter case the embeddings' gradients, which are final last, are reduced in two halves: the norm
// needs only the reduce-scatter, and the all-gather overlaps the update of the layers.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/parameter_store.h"
#include "src/parallel/step_spans.h"

namespace lathe {

struct ReductionOptions {
  bool each_micro_step = false;
  int64_t slots = 3;     // of each_micro_step
  bool in_bf16 = false;  // on the network; sums are added up in the accumulator's type
  bool of_all = false;   // this rank needs all sums, not only its share
};

class GradientReduction {
 public:
  // `shares`: this rank's, of the layout's buckets. `type`: of the gradients.
  GradientReduction(const ParameterLayout& layout, const std::vector<ShardPart>& shares, DType type,
                    const ReductionOptions& options, Communicator& communicator, Device& device,
                    StepSpans& spans, Arena& arena);

  const ModelParameters& views() const { return views_; }
  // Of each bucket: the sums that this rank needs, and the memory in which its gradients are
  // written, which is free outside of a step.
  const std::vector<Tensor>& sums() const { return sums_; }
  const Tensor& memory(size_t b) const { return written_[b]; }

  // The calls of ParameterStore with the same names.
  bool begin_backward(int64_t micro_step, bool last);
  void need(const Ops& ops, size_t slot);
  bool final(const Ops& ops, size_t slot);  // whether a bucket's reduction was enqueued
  void finish(const Ops& ops);
  // If this rank needs all sums: enqueues the second half of the embeddings' reduction; waits for
  // it.
  void gather_embeddings();
  void await_embeddings(const Ops& ops);

 private:
  enum class State : uint8_t { absent, written, reduced };  // of a bucket's memory
  struct Running {
    Ticket ticket = 0;
    Tensor sums, arrive;  // where they belong and where they arrive; the same if nothing is added
    bool add = false;
  };
  size_t slot_of(size_t b) const { return (b - 1) % holders_.size(); }
  // This rank's share of a tensor of bucket b.
  Tensor share_in(const Tensor& bucket, size_t b) const {
    return bucket.rows(shares_[b].begin - layout_.buckets[b].begin, shares_[b].elements);
  }
  std::vector<Tensor> allocate(DType type, Arena& arena);
  void find_gaps();
  void enter(const Ops& ops, size_t b);
  void reduce(const Ops& ops, size_t b);
  void collect(const Ops& ops, size_t b);

  const ParameterLayout& layout_;
  const std::vector<ShardPart> shares_;
  const ReductionOptions options_;
  Communicator& communicator_;
  Device& device_;
  StepSpans& spans_;

  std::vector<Tensor> written_, narrow_, sums_;  // of each bucket; narrow_: bf16 copies to reduce
  ModelParameters views_;
  std::vector<std::vector<Tensor>> gaps_;  // memory of a bucket that belongs to no parameter
  std::vector<State> states_;              // of the buckets
  std::vector<Running> running_;           // of the buckets
  std::vector<int64_t> holders_;           // the bucket in each slot, or -1
  bool reduces_ = false;                   // in this micro-step
  bool add_ = false;                       // to the sums of the micro-steps before
  size_t reductions_ = 0;                  // of this micro-step
  bool embeddings_in_bf16_ = false;
  Ticket embeddings_gathered_ = 0;
};

}  // namespace lathe
