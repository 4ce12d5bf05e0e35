// AdamW on the host (--offload states=cpu): masters and moments lie in the host's memory, and only
// gradients and new weights cross the bus, in chunks. Chunk c uses slot c modulo 3 of pinned
// memory. While the host updates one, gradients of later chunks come down, and the last one's
// weights go up:
//
//   down  | 0 | 1, 2 | 3 | 4 | ...
//   host      | 0    | 1 | 2 | ...
//   up               | 0 | 1 | ...
//
// The device waits between them, because three queues can only be ordered through it. The update
// begins when the gradient norm is known, so none of it can run beside the backward pass.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/device/copy_queue.h"
#include "kernels/ops.h"
#include "src/model/first_error.h"

namespace lathe {

class HostUpdate {
 public:
  // For chunks of at most `largest` elements. `host` makes the CPU's device; it is called in the
  // thread that updates.
  using MakeHost = std::function<std::unique_ptr<Device>()>;
  HostUpdate(DType weights, int64_t largest, MakeHost host, Device& device, Arena& arena);

  // Runs these updates in order. Gradients, weights, inputs and results of `updates` lie in the
  // device's memory, segments, moments and masters in the host's; but masters that are the weights
  // in the device's. Later calls must have the same arguments. before(i) is called before update
  // i's gradients are read.
  void run(const std::vector<AdamW>& updates, const std::function<void(size_t)>& before);

  // Throws the error of an update, if there was one; then nothing was updated after it.
  void rethrow();

  // Bytes that one run copies.
  int64_t bytes_down() const { return bytes_down_; }
  int64_t bytes_up() const { return bytes_up_; }

 private:
  static constexpr size_t kSlots = 3;
  struct Slot {
    Tensor gradients, weights;
  };
  Ticket copy_down(const Tensor& to, const Tensor& from);
  Ticket copy_up(const Tensor& to, const Tensor& from);
  void prepare(const std::vector<AdamW>& updates);
  void update(size_t i);

  const DType dtype_;
  const MakeHost make_host_;
  std::array<Slot, kSlots> slots_;
  Tensor inputs_, results_;     // of the step, uint8
  std::vector<AdamW> updates_;  // on the host
  int64_t bytes_down_ = 0, bytes_up_ = 0;
  FirstError error_;
  std::unique_ptr<CopyQueue> down_, calls_, up_;
};

}  // namespace lathe
