// A queue of copies between tensors in any memory space, and of calls of host functions, beside the
// device's operations.
#pragma once

#include <functional>

#include "kernels/device/queue.h"
#include "kernels/device/tensor.h"

namespace lathe {

class CopyQueue {
 public:
  virtual ~CopyQueue() = default;
  // Equal sizes in bytes, no overlap.
  virtual Ticket copy(const Tensor& to, const Tensor& from) = 0;
  // A thread of the host calls body(), which must not use the device and must not throw. If the
  // device records, each replay calls it.
  virtual Ticket call(std::function<void()> body) = 0;
  // Orders the entries against the device's operations.
  virtual Queue& queue() = 0;
};

}  // namespace lathe
