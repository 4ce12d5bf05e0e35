// A queue of work that runs beside the device's own operations: collectives, copies of offloaded
// tensors, and calls of host functions. Entries run in the order in which they were added. Two
// calls order them relative to the device's operations; both may be recorded (Device::replay).
//
//   kernels/device/in_order_queue.h   entries are among the device's operations themselves
//   kernels/device/worker_queue.h     a thread of the host runs them
//   kernels/cuda/stream_queue.h       a stream of a GPU runs them
#pragma once

#include <cstdint>

namespace lathe {

// Identifies an entry: the first has 1, the next 2, ...; 0 is none.
using Ticket = int64_t;

class Queue {
 public:
  virtual ~Queue() = default;

  // Later entries start after everything that the device was given before this call.
  virtual void after_device() = 0;
  // What the device is given after this call starts after the entry and all entries before it.
  virtual void device_after(Ticket ticket) = 0;
  // The newest entry.
  virtual Ticket last() const = 0;
  // The host waits until the entry is done. Not while recording.
  virtual void wait(Ticket ticket) = 0;
  // An entry that marks the time at which it runs (Device::mark).
  virtual Ticket mark(int number) = 0;
};

}  // namespace lathe
