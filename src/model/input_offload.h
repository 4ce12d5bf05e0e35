// Keeps the inputs of layers, which the backward pass reads, in the host's memory (--offload
// activations=pinned). With --recompute block they are all that grows with the number of layers.
//
// On the device there are slots for three: input u lies in slot u modulo 3. In the forward pass the
// input of a unit leaves while the device works on the next unit, and another unit's input enters
// its slot two units later. In the backward pass it comes back two units before it is read. The
// inputs of the last three units stay.
//
//   forward    device  | unit 0 | unit 1 | unit 2 | unit 3 | ...
//              copies           | 0 out  | 1 out  | 2 out  |
//   backward   device  | ... | unit 5 | unit 4 | unit 3 | ...
//              copies        | 3 in   | 2 in   | 1 in   |
//
// Units are those of a ParameterStore: the layers, then the last LayerNorm.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/device/copy_queue.h"

namespace lathe {

class InputOffload {
 public:
  static constexpr int64_t kSlots = 3;

  // For inputs of `units` units.
  InputOffload(int64_t units, DType dtype, const Shape& shape, Arena& arena);

  // Where the input of a unit lies while it is on the device.
  const Tensor& slot(int64_t unit) const { return slots_[static_cast<size_t>(unit % kSlots)]; }

  // Forward: before the input of a unit is written, and after it was last read.
  void begin_write(int64_t unit);
  void end_read(int64_t unit);
  // Backward: before the input of a unit is read. Called for each unit, from last to first.
  void need(int64_t unit);

 private:
  bool leaves(int64_t unit) const { return unit >= 0 && unit + kSlots < units_; }

  int64_t units_;
  std::unique_ptr<CopyQueue> copies_;
  std::vector<Tensor> slots_;
  std::vector<Tensor> host_;     // of each unit that leaves
  std::vector<Ticket> tickets_;  // of its last copy
};

}  // namespace lathe
