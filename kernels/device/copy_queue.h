// A queue of copies between tensors in any memory space, beside the device's operations.
#pragma once

#include "kernels/device/queue.h"
#include "kernels/device/tensor.h"

namespace lathe {

class CopyQueue {
 public:
  virtual ~CopyQueue() = default;
  // Equal sizes in bytes, no overlap.
  virtual Ticket copy(const Tensor& to, const Tensor& from) = 0;
  // Orders the copies against the device's operations.
  virtual Queue& queue() = 0;
};

}  // namespace lathe
