#include "src/parallel/weight_gathering.h"

#include <fmt/format.h>

#include <algorithm>

namespace lathe {

WeightGathering::WeightGathering(const ParameterLayout& layout,
                                 const std::vector<ShardPart>& shares, DType dtype, int64_t slots,
                                 MemorySpace space, Communicator& communicator, StepSpans& spans,
                                 Arena& arena)
    : layout_(layout), communicator_(communicator), spans_(spans) {
  const std::vector<Bucket>& buckets = layout.buckets;
  for (size_t b = 0; b < buckets.size(); ++b) {
    if (slots > 0 && b > 0 && buckets[b].first_layer == buckets[b - 1].first_layer) {
      groups_.back().end = b + 1;
      continue;
    }
    groups_.push_back({.first = b,
                       .end = b + 1,
                       .first_layer = buckets[b].first_layer,
                       .name = slots > 0 && b > 0 ? fmt::format("h.{}", buckets[b].first_layer)
                                                  : buckets[b].name});
  }
  const auto others = static_cast<int64_t>(groups_.size()) - 1;
  slots_.assign(static_cast<size_t>(slots > 0 ? std::min(slots, others) : others), -1);
  all_stay() ? allocate_all(shares, dtype, arena) : allocate_slots(shares, dtype, space, arena);
}

void WeightGathering::allocate_all(const std::vector<ShardPart>& shares, DType dtype,
                                   Arena& arena) {
  const Tensor all = arena.allocate(MemoryCategory::weights, dtype, {layout_.elements});
  for (Group& group : groups_) group.memory = all.rows(begin_of(group), elements_of(group));
  for (const ShardPart& share : shares) shares_.push_back(all.rows(share.begin, share.elements));
  views_ = ModelParameters(layout_, all);
}

// This rank's share of the embeddings lies among them.
void WeightGathering::allocate_slots(const std::vector<ShardPart>& shares, DType dtype,
                                     MemorySpace space, Arena& arena) {
  const auto allocate = [&](MemoryCategory category, int64_t elements,
                            MemorySpace in = MemorySpace::device) {
    return arena.allocate(category, dtype, {elements}, in);
  };
  int64_t largest = 0;
  for (size_t g = 1; g < groups_.size(); ++g) largest = std::max(largest, elements_of(groups_[g]));
  groups_[0].memory = allocate(MemoryCategory::weights, elements_of(groups_[0]));
  std::vector<Tensor> memory;
  for (size_t s = 0; s < slots_.size(); ++s)
    memory.push_back(allocate(MemoryCategory::weights, largest));
  Placement placement;
  placement.add(0, groups_[0].memory);
  for (size_t g = 1; g < groups_.size(); ++g) {
    groups_[g].memory = memory[slot_of(g)].rows(0, elements_of(groups_[g]));
    placement.add(begin_of(groups_[g]), groups_[g].memory);
  }
  const int64_t before = shares[1].local, mine = shares.back().local + shares.back().elements;
  const bool are_masters = dtype == accumulator_of(dtype);
  const Tensor flat = allocate(are_masters ? MemoryCategory::masters : MemoryCategory::weights,
                               mine - before, space);
  shares_on_host_ = space != MemorySpace::device;
  shares_.push_back(groups_[0].memory.rows(shares[0].begin, shares[0].elements));
  for (size_t b = 1; b < shares.size(); ++b)
    shares_.push_back(flat.rows(shares[b].local - before, shares[b].elements));
  views_ = ModelParameters(layout_, placement);
}

// Gathers a group's buckets from the ranks that update their shares.
void WeightGathering::enqueue(const Group& group) {
  for (size_t b = group.first; b < group.end; ++b) {
    const Bucket& bucket = layout_.buckets[b];
    const char* name = bucket.name.c_str();
    const Tensor all = group.memory.rows(bucket.begin - begin_of(group), bucket.elements());
    Tensor mine = shares_[b];
    if (shares_on_host_ && b > 0) {  // collectives work in the device's memory
      mine = all.rows(communicator_.rank() * shares_[b].elements(), shares_[b].elements());
      communicator_.copy(mine, shares_[b], name);
    }
    communicator_.all_gather(all, mine, name);
  }
}

void WeightGathering::request(size_t g) {
  Group& group = groups_[g];
  group.gathered = spans_.run(group.name.c_str(), [&] { enqueue(group); });
  if (g > 0) slots_[slot_of(g)] = static_cast<int64_t>(g);
}

// Nothing that was gathered before counts any more.
void WeightGathering::forget() {
  std::ranges::fill(slots_, -1);
}

void WeightGathering::begin_step() {
  forget();
  communicator_.after_device();
  for (size_t g = 0; g <= slots_.size(); ++g) request(g);
}

void WeightGathering::begin_forward() {
  if (all_stay()) return;
  forget();
  communicator_.after_device();
  for (size_t g = 1; g <= slots_.size(); ++g) request(g);
}

// The slot of a group that is requested here is free: its former group is further behind in this
// pass than the one that the device has just left.
void WeightGathering::need(Pass pass, int64_t unit) {
  size_t g = groups_.size() - 1;
  while (groups_[g].first_layer > unit) --g;
  const auto slots = static_cast<int64_t>(slots_.size()), here = static_cast<int64_t>(g);
  for (int64_t ahead = 0; g > 0 && ahead < slots; ++ahead) {
    const int64_t next = pass == Pass::forward ? here + ahead : here - ahead;
    if (next < 1 || next >= static_cast<int64_t>(groups_.size()) || is_there(next)) continue;
    communicator_.after_device();
    request(static_cast<size_t>(next));
  }
  if (groups_[g].gathered <= seen_) return;
  seen_ = groups_[g].gathered;
  spans_.wait(seen_, groups_[g].name.c_str());
}

void WeightGathering::gather() {
  forget();
  communicator_.after_device();
  for (size_t g = 0; g < (all_stay() ? groups_.size() : 1); ++g) request(g);
  communicator_.device_after(communicator_.last());
  seen_ = communicator_.last();
}

Tensor WeightGathering::bucket(size_t b) {
  size_t g = groups_.size() - 1;
  while (groups_[g].first > b) --g;
  const Group& group = groups_[g];
  if (g > 0 && !all_stay()) {
    forget();
    communicator_.after_device();
    enqueue(group);
    communicator_.device_after(communicator_.last());
  }
  const Bucket& bucket = layout_.buckets[b];
  return group.memory.rows(bucket.begin - begin_of(group), bucket.elements());
}

}  // namespace lathe
