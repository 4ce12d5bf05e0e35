#include "src/model/input_offload.h"

#include <algorithm>

#include "kernels/device/device.h"

namespace lathe {

InputOffload::InputOffload(int64_t units, DType dtype, const Shape& shape, Arena& arena)
    : units_(units), copies_(arena.device().make_copy_queue()) {
  const auto allocate = [&](MemorySpace space) {
    return arena.allocate(MemoryCategory::activations, dtype, shape, space);
  };
  for (int64_t i = 0; i < std::min(kSlots, units); ++i)
    slots_.push_back(allocate(MemorySpace::device));
  for (int64_t unit = 0; leaves(unit); ++unit) host_.push_back(allocate(MemorySpace::pinned));
  tickets_.resize(host_.size());
}

void InputOffload::begin_write(int64_t unit) {
  const int64_t before = unit - kSlots;  // in the same slot
  if (leaves(before)) copies_->queue().device_after(tickets_[static_cast<size_t>(before)]);
}

void InputOffload::end_read(int64_t unit) {
  if (!leaves(unit)) return;
  copies_->queue().after_device();
  const auto u = static_cast<size_t>(unit);
  tickets_[u] = copies_->copy(host_[u], slot(unit));
}

void InputOffload::need(int64_t unit) {
  // The slot of this one held the input of the unit before, which the device has left.
  const int64_t ahead = unit - (kSlots - 1);
  if (leaves(ahead)) {
    copies_->queue().after_device();
    const auto a = static_cast<size_t>(ahead);
    tickets_[a] = copies_->copy(slot(ahead), host_[a]);
  }
  if (leaves(unit)) copies_->queue().device_after(tickets_[static_cast<size_t>(unit)]);
}

}  // namespace lathe
