// Where this rank's parameters are, and when they are available. The model asks for weights before
// it reads them and reports when gradients are final; the optimizer updates what this rank owns.
// Only the store knows how many ranks there are and which rank holds what.
//
// A unit is what the model reads together: the embeddings (kEmbeddings), a layer (its number), or
// the last LayerNorm (n_layer). Views of a unit have the same address in every step, so that a step
// can be recorded (Device::replay). Between release() and the next need() a store may reuse the
// memory behind them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/parameters.h"

namespace lathe {

enum class Pass : uint8_t { forward, backward };

inline constexpr int64_t kEmbeddings = -1;

// Steps that may be in flight; each has a slot for what is read after it is done.
inline constexpr int kStepSlots = 2;

// Two marks (Device::mark) between which a stream did one thing.
struct Span {
  const char* what = "";
  bool waits = false;  // the device waited for communication; otherwise a collective
  int from = 0, to = 0;
};

// Part of a bucket that this rank updates. `local` counts in the optimizer's flat tensors. The
// weights have the model's number type; if that is the accumulator's type, the weights are their
// own masters. Gradients have the accumulator's type.
struct OwnedPart {
  ShardPart part;
  Tensor weights, gradients;
};

// owned()[first] to owned()[end - 1], which are updated together: they follow one another without a
// gap in all their tensors.
struct UpdateRange {
  size_t first = 0, end = 0;
};

class ParameterStore {
 public:
  virtual ~ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  const ParameterLayout& layout() const { return layout_; }

  // For the model: views of the weights and gradients of all units.
  const ModelParameters& weights() const { return weights_; }
  const ModelParameters& gradients() const { return gradients_; }
  // need: a pass is about to read the weights of a unit. release: it will not read them again
  // before its next need(). Layers come in order in the forward pass and in reverse in the backward
  // pass. The embeddings come first, and again after the last LayerNorm, because they are also the
  // head.
  virtual void need(Pass, int64_t /*unit*/) {}
  virtual void release(Pass, int64_t /*unit*/) {}
  // The backward pass is about to write or add to the gradients of slots[slot], where a bucket may
  // start, and of the slots up to the next such place.
  virtual void need_gradients(size_t /*slot*/) {}
  // The gradients of slots[slot] and of all later slots are final. Called for each slot where a
  // bucket may start, from last to first.
  virtual void gradients_final(size_t /*slot*/) {}

  // For the optimizer: what this rank updates, one part of each bucket.
  const std::vector<OwnedPart>& owned() const { return owned_; }
  // The ranges to update, in this order, each after await_update().
  const std::vector<UpdateRange>& updates() const { return updates_; }
  virtual void await_update(size_t /*range*/) {}
  // This rank's share of each bucket, in the optimizer's flat tensors: the part of what it updates
  // that it contributes to the norm and to checkpoints. If there are other ranks they contribute
  // the rest, and add_up_squares() sums over ranks.
  const std::vector<ShardPart>& share() const { return share_; }
  virtual void add_up_squares(const Tensor& /*squares*/) {}

  // For the step (src/train.cpp). Called before the first forward pass; `slot` selects where this
  // step's spans go.
  virtual void begin_step(int /*slot*/) {}
  // Called before each micro-step's backward pass, of which the last one leaves the gradients of
  // the whole step. Returns whether the pass must add to the gradients; otherwise it overwrites
  // them.
  virtual bool begin_backward(int64_t micro_step, bool /*last*/) { return micro_step > 0; }
  // From here on, operations on the device see my_gradients() and the loss summed over all ranks;
  // some gradients only after await_update().
  virtual void finish_gradients() {}
  // What the streams did in the step that last used this slot.
  virtual std::span<const Span> spans(int /*slot*/) const { return {}; }

  // Outside of a step: after it, need() gives the weights as the ranks' optimizers last left them.
  virtual void gather_weights() {}
  // Whether they then stay, so that a rank can run a forward pass alone. Otherwise the ranks run it
  // together.
  virtual bool weights_stay() const { return true; }
  // Called before each forward pass outside of a step, after gather_weights().
  virtual void begin_forward() {}
  // All weights of a bucket, after gather_weights(); valid until the next call. A forward pass
  // after it needs another begin_forward().
  virtual Tensor weights_of(size_t bucket) {
    return weights_.flat.rows(layout_.buckets[bucket].begin, layout_.buckets[bucket].elements());
  }
  // Adds the other ranks' loss to results->loss.
  virtual void add_up_loss() {}
  // All elements of a bucket, of which `mine` is the part that this rank updates: `mine` itself if
  // that is all. Otherwise the result takes the memory of gradients, which are lost. Valid until
  // the next call.
  virtual Tensor gather(size_t /*bucket*/, const Tensor& mine, const char* /*what*/) {
    return mine;
  }
  // If this rank updates whole buckets, fetches into `mine` what is not in its share of one. May
  // overwrite gradients.
  virtual void complete(size_t /*bucket*/, const Tensor& /*mine*/, const char* /*what*/) {}

  // Uses another table of operations from here on, such as one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

 protected:
  // The constructor of a store allocates its memory, then calls place() and own().
  ParameterStore(const ModelConfig& config, const Sharding& sharding, const Ops& ops)
      : layout_(config, sharding), ops_(&ops) {}
  const Ops& ops() const { return *ops_; }
  // Where the model finds weights and gradients.
  void place(const ModelParameters& weights, const ModelParameters& gradients) {
    weights_ = weights;
    gradients_ = gradients;
  }
  // A buffer from the arena for all parameters.
  ModelParameters allocate_all(MemoryCategory category, DType dtype, Arena& arena) const {
    return {layout_, arena.allocate(category, dtype, {layout_.elements})};
  }
  // What this rank updates: parts[b] of bucket b, whose weights and gradients are weights[b] and
  // gradients[b]; each by itself, unless the store then sets updates_.
  void own(const std::vector<ShardPart>& parts, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& gradients);
  // The elements of each part in a buffer of all.
  std::vector<Tensor> parts_of(const Tensor& flat, const std::vector<ShardPart>& parts) const;

  ParameterLayout layout_;
  ModelParameters weights_, gradients_;
  std::vector<OwnedPart> owned_;
  std::vector<ShardPart> share_;
  std::vector<UpdateRange> updates_;

 private:
  const Ops* ops_;
};

// Weights alone, to generate text.
class LoadedWeights final : public ParameterStore {
 public:
  LoadedWeights(const ModelConfig& config, const Ops& ops, Arena& arena);
};

// A single rank: everything is always available.
class LocalStore final : public ParameterStore {
 public:
  LocalStore(const ModelConfig& config, const Ops& ops, Arena& arena);
};

}  // namespace lathe
