// A queue on a GPU: a stream of its own, ordered relative to the device's stream by events.
//
// While the device records (Device::replay), new entries become part of the recording. A recording
// cannot wait for anything outside it, so all earlier entries must have been joined (device_after
// or wait) when it begins. Before it ends, all recorded entries must be joined:
// device_after(last()).
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/cuda/stream.h"
#include "kernels/device/device.h"
#include "kernels/device/queue.h"

namespace lathe::cuda {

class StreamQueue final : public Queue {
 public:
  // `while_waiting` is called regularly while the host waits, and may throw.
  explicit StreamQueue(Device& device, std::function<void()> while_waiting = {});
  ~StreamQueue() override;
  StreamQueue(const StreamQueue&) = delete;
  StreamQueue& operator=(const StreamQueue&) = delete;

  // An entry is what is enqueued on stream() between begin() and end().
  void begin();
  cudaStream_t stream() const { return stream_; }
  Ticket end();
  // Enqueues a call by a thread of the host, between begin() and end(). body() must not use the GPU
  // and must not throw. A recording keeps it.
  void call(std::function<void()> body);
  bool recording() const;

  void after_device() override;
  void device_after(Ticket ticket) override;
  Ticket last() const override { return last_; }
  void wait(Ticket ticket) override;
  Ticket mark(int number) override;

 private:
  // Who waits for an older entry waits for the oldest of these. A device rarely lags that far
  // behind the queue: a step has up to eight entries per matrix of the model and micro-step.
  static constexpr Ticket kEvents = 4096;
  cudaEvent_t event_of(Ticket ticket) const;
  static bool is_recording(cudaStream_t stream);

  Device& device_;
  const std::function<void()> while_waiting_;
  const cudaStream_t device_stream_;
  Stream stream_;
  cudaEvent_t device_event_ = nullptr;
  std::vector<cudaEvent_t> events_;  // record when each of the newest kEvents entries was done
  struct HostCall {
    std::function<void()> body;
    std::atomic<bool> done{false};
  };
  std::deque<HostCall> calls_, recorded_calls_;
  Ticket last_ = 0;
  Ticket joined_ = 0;          // the device waits for this entry and all before it
  bool was_recorded_ = false;  // replays may be running on the device's stream
};

}  // namespace lathe::cuda
