// Where the parameters of a run are on this rank, and when they are there. The model asks for
// weights before it reads them and says when gradients are final; the optimizer updates what this
// rank owns. Neither knows how many ranks there are or who holds what: that is the store's.
//
// A unit is what the model reads together: the embeddings (kEmbeddings), a layer (its number), or
// the last LayerNorm (n_layer). Views of a unit have the same address in every step, so that a step
// can be recorded (Device::replay). A store may reuse the memory behind them from release() to the
// next need().
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

// Steps that may be under way; each has a slot for what is read after it is done.
inline constexpr int kStepSlots = 2;

// Two marks (Device::mark) between which a line did one thing.
struct Span {
  const char* what = "";
  bool waits = false;  // the device's line, waiting for communication; else a collective on its own
  int from = 0, to = 0;
};

// Elements [begin, begin + elements) of the tensors that a rank owns, which are updated together.
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

  // For the model. The weights and gradients of all units, as views.
  const GPT2Parameters& weights() const { return weights_; }
  const GPT2Parameters& gradients() const { return gradients_; }
  // A pass is about to read the weights of a unit; it has read them for the last time before it
  // needs them again. Layers come in their order in the forward pass and in the opposite one in the
  // backward pass. The embeddings come first, and again after the last LayerNorm: they are the
  // head, too.
  virtual void need(Pass, int64_t /*unit*/) {}
  virtual void release(Pass, int64_t /*unit*/) {}
  // The backward pass is about to write, or to add to, the gradients of a unit.
  virtual void need_gradients(int64_t /*unit*/) {}
  // The gradients of slots[slot] and of all slots behind it are final. Called for each slot at
  // which a bucket may begin, from the last to the first.
  virtual void gradients_final(size_t /*slot*/) {}

  // For the optimizer. What this rank updates: parts of the layout, one after the other in flat
  // tensors. `my_weights` has the model's number type, and is its own master if that is the
  // accumulator's type; `my_gradients` has the accumulator's.
  const std::vector<ShardPart>& owned() const { return owned_; }
  const Tensor& my_weights() const { return my_weights_; }
  const Tensor& my_gradients() const { return my_gradients_; }
  // The ranges to update, in this order, each after await_update().
  const std::vector<UpdateRange>& updates() const { return updates_; }
  virtual void await_update(size_t /*range*/) {}
  // The parts whose squares this rank brings to the norm, in its flat tensors. Other ranks bring
  // the rest if there are any: add_up_squares() sums them, and what a rank does not bring is zero.
  const std::vector<ShardPart>& share() const { return share_; }
  virtual void add_up_squares(const Tensor& /*sums*/) {}

  // For the step (src/train.cpp). Before its first forward pass; `slot`: whose spans it writes.
  virtual void begin_step(int /*slot*/) {}
  // Before each micro-step's backward pass. The gradients of the last one are those of the step.
  virtual void begin_backward(bool /*last*/) {}
  // my_gradients() and the loss are those of all ranks for what the device is given from here on;
  // some of them only after await_update().
  virtual void finish_gradients() {}
  // What the lines did in the step that last used this slot.
  virtual std::span<const Span> spans(int /*slot*/) const { return {}; }

  // Outside of a step. All weights are there, as the ranks' optimizers last made them.
  virtual void gather_weights() {}
  // results->loss += the other ranks'.
  virtual void add_up_loss() {}
  // All elements of what this rank has a part of: `mine` itself if it owns all. Else they lie in
  // the gradients, which are lost: empty after whole(), every rank's after gather().
  virtual Tensor whole(const Tensor& mine) { return mine; }
  virtual Tensor gather(const Tensor& mine, const char* /*what*/) { return mine; }
  // Copies this rank's part of whole(mine) into `mine`.
  virtual void keep_mine(const Tensor& /*mine*/) {}

  // Runs on another table from here on: one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

 protected:
  // Takes weights and gradients of everything from the arena.
  ParameterStore(const GPT2Config& config, const Sharding& sharding, const Ops& ops, Arena& arena);
  const Ops& ops() const { return *ops_; }
  // Owns everything and updates it at once.
  void own_all();

  ParameterLayout layout_;
  GPT2Parameters weights_, gradients_;
  std::vector<ShardPart> owned_, share_;
  Tensor my_weights_, my_gradients_;
  std::vector<UpdateRange> updates_;

 private:
  const Ops* ops_;
};

// One rank by itself: everything is always there.
class LocalStore final : public ParameterStore {
 public:
  LocalStore(const GPT2Config& config, const Ops& ops, Arena& arena);
};

}  // namespace lathe
