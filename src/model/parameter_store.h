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

// Elements [begin, begin + elements) of a rank's flat tensors, which are updated together.
struct UpdateRange {
  int64_t begin = 0, elements = 0;
  std::vector<ShardPart> parts;  // of the layout; `local` counts from `begin`
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
  // The backward pass is about to write or add to the gradients of a unit.
  virtual void need_gradients(int64_t /*unit*/) {}
  // The gradients of slots[slot] and of all later slots are final. Called for each slot where a
  // bucket may start, from last to first.
  virtual void gradients_final(size_t /*slot*/) {}

  // For the optimizer: what this rank updates, as parts of the layout that lie one after another in
  // flat tensors. `my_weights` has the model's number type; if that is the accumulator's type, the
  // weights are their own masters. `my_gradients` has the accumulator's type.
  const std::vector<ShardPart>& owned() const { return owned_; }
  const Tensor& my_weights() const { return my_weights_; }
  const Tensor& my_gradients() const { return my_gradients_; }
  // The ranges to update, in this order, each after await_update().
  const std::vector<UpdateRange>& updates() const { return updates_; }
  virtual void await_update(size_t /*range*/) {}
  // The parts whose squares this rank contributes to the norm, in its flat tensors. If there are
  // other ranks they contribute the rest, and add_up_squares() sums over ranks.
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

  // Outside of a step: makes all weights available, as the ranks' optimizers last left them.
  virtual void gather_weights() {}
  // Adds the other ranks' loss to results->loss.
  virtual void add_up_loss() {}
  // All elements of a tensor of which this rank has a part: `mine` itself if it owns all. Otherwise
  // the result takes the memory of the gradients, which are lost: uninitialised after whole(),
  // every rank's part after gather().
  virtual Tensor whole(const Tensor& mine) { return mine; }
  virtual Tensor gather(const Tensor& mine, const char* /*what*/) { return mine; }
  // Copies this rank's part of whole(mine) into `mine`.
  virtual void keep_mine(const Tensor& /*mine*/) {}

  // Uses another table of operations from here on, such as one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

 protected:
  // Allocates weights and gradients of everything from the arena.
  ParameterStore(const ModelConfig& config, const Sharding& sharding, const Ops& ops, Arena& arena);
  const Ops& ops() const { return *ops_; }
  // Makes this rank own everything and update it as one range.
  void own_all();

  ParameterLayout layout_;
  ModelParameters weights_, gradients_;
  std::vector<ShardPart> owned_, share_;
  Tensor my_weights_, my_gradients_;
  std::vector<UpdateRange> updates_;

 private:
  const Ops* ops_;
};

// A single rank: everything is always available.
class LocalStore final : public ParameterStore {
 public:
  LocalStore(const ModelConfig& config, const Ops& ops, Arena& arena);
};

}  // namespace lathe
