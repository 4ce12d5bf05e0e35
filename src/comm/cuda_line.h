// The line of the collectives on a GPU: a stream of its own, tied to the device's by events.
//
// While the device records (Device::replay), what is called becomes part of the recording. Whatever
// was called before must then be joined, for a recording can wait for nothing outside of it; and
// all that is recorded must be joined before the recording ends (device_after(last())).
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <vector>

#include "kernels/cuda/stream.h"
#include "src/comm/communicator.h"

namespace lathe {

class CudaLine {
 public:
  explicit CudaLine(Device& device);
  ~CudaLine();
  CudaLine(const CudaLine&) = delete;
  CudaLine& operator=(const CudaLine&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Around what a collective enqueues on stream().
  void begin();
  Ticket end();

  void after_device();
  void device_after(Ticket ticket);
  Ticket last() const { return last_; }
  // The host looks until it is done, and calls check() in between.
  void wait(Ticket ticket, const std::function<void()>& check);

  bool recording() const;

 private:
  // A step of several ranks has up to six tickets for each matrix of the model.
  static constexpr Ticket kEvents = 4096;
  cudaEvent_t event_of(Ticket ticket) const;
  static bool is_recording(cudaStream_t stream);

  const cudaStream_t device_stream_;
  cuda::Stream stream_;
  cudaEvent_t device_event_ = nullptr;
  std::vector<cudaEvent_t> events_;  // kEvents: when a ticket was done; the youngest
  Ticket last_ = 0;
  Ticket joined_ = 0;          // the device waits for it and all before
  bool was_recorded_ = false;  // replays may be under way on the device's stream
};

}  // namespace lathe
