// The weights of the model, gathered from the ranks that update them.
//
// What is gathered together is a group: the embeddings, then groups of layers. The embeddings'
// weights have memory of their own. The other groups share slots, in turn: group g lies in slot
// g - 1 modulo their number, so a view of its weights has one address. With as many slots as groups
// (ZeRO stages 1 and 2), all weights stay until the next step; this rank's share lies among them.
// With fewer (stage 3) its share has memory of its own, and a group is gathered while the device
// works on the one before it, into the slot of a group that the device has left.
//
//   slots 2, forward    device  | layer 0 | layer 1 | layer 2 | ...
//                       queue   |0 1      |2        |3        |
//   then backward       device  | ... | layer 5 | layer 4 | layer 3 | ...
//                       queue   |               |3        |2        |
//
// The last layers of a forward pass are still there when its backward pass begins, and the first
// when the next micro-step's forward pass begins.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device/arena.h"
#include "src/model/parameter_store.h"
#include "src/parallel/step_spans.h"

namespace lathe {

class WeightGathering {
 public:
  // For this rank's `shares` of the layout's buckets. slots 0: as many as groups. Otherwise the
  // layout has whole layers, and if not all fit, this rank's share of the layers lies in `space`.
  WeightGathering(const ParameterLayout& layout, const std::vector<ShardPart>& shares, DType dtype,
                  int64_t slots, MemorySpace space, Communicator& communicator, StepSpans& spans,
                  Arena& arena);

  const ModelParameters& views() const { return views_; }
  const std::vector<Tensor>& shares() const { return shares_; }  // of each bucket
  bool all_stay() const { return slots_.size() + 1 == groups_.size(); }

  // Before the first forward pass of a step: gathers what it needs first, or all that stays.
  void begin_step();
  // Before a pass reads a unit's weights.
  void need(Pass pass, int64_t unit);
  // Outside of a step: gathers what stays. begin_forward: before each forward pass after it.
  void gather();
  void begin_forward();
  // All weights of a bucket, after gather(). Until the next call.
  Tensor bucket(size_t b);

 private:
  struct Group {
    size_t first, end;    // buckets
    int64_t first_layer;  // -1: the embeddings
    Tensor memory;        // of all its elements
    std::string name;
    Ticket gathered = 0;
  };
  int64_t begin_of(const Group& group) const { return layout_.buckets[group.first].begin; }
  int64_t elements_of(const Group& group) const {
    return layout_.buckets[group.end - 1].end - begin_of(group);
  }
  size_t slot_of(size_t group) const { return (group - 1) % slots_.size(); }
  bool is_there(int64_t group) const {
    return slots_[slot_of(static_cast<size_t>(group))] == group;
  }
  void allocate_all(const std::vector<ShardPart>& shares, DType dtype, Arena& arena);
  void allocate_slots(const std::vector<ShardPart>& shares, DType dtype, MemorySpace space,
                      Arena& arena);
  void enqueue(const Group& group);
  void request(size_t group);
  void forget();

  const ParameterLayout& layout_;
  Communicator& communicator_;
  StepSpans& spans_;
  std::vector<Group> groups_;
  std::vector<int64_t> slots_;  // the group that each holds, or -1
  std::vector<Tensor> shares_;
  bool shares_on_host_ = false;  // except for that of the embeddings
  ModelParameters views_;
  Ticket seen_ = 0;  // the newest gather that the device has waited for
};

}  // namespace lathe
