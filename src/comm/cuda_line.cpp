#include "src/comm/cuda_line.h"

#include <limits>

#include "src/comm/backoff.h"

namespace lathe {

using cuda::check_cuda;

CudaLine::CudaLine(Device& device)
    : device_stream_(static_cast<cudaStream_t>(device.stream())),
      stream_(cuda::Stream::urgent()),
      events_(kEvents) {
  check_cuda(cudaEventCreateWithFlags(&device_event_, cudaEventDisableTiming), "event");
  for (cudaEvent_t& event : events_)
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
}

CudaLine::~CudaLine() {
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  cudaEventDestroy(device_event_);
}

bool CudaLine::is_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "stream");
  return capture == cudaStreamCaptureStatusActive;
}

bool CudaLine::recording() const {
  return is_recording(device_stream_);
}

void CudaLine::begin() {
  // A recording takes the line in; and behind a replay, whose collectives run in streams of its
  // own, the next one must come after it.
  const bool outside = recording() ? !is_recording(stream_) : was_recorded_;
  if (outside) after_device();
}

Ticket CudaLine::end() {
  ++last_;
  check_cuda(cudaEventRecord(event_of(last_), stream_), "a collective");
  return last_;
}

void CudaLine::after_device() {
  const bool begins = recording() && !is_recording(stream_);
  LATHE_CHECK(!begins || joined_ == last_,
              "a recording begins, and collective {} was not joined before", last_);
  was_recorded_ |= begins;
  check_cuda(cudaEventRecord(device_event_, device_stream_), "a collective");
  check_cuda(cudaStreamWaitEvent(stream_, device_event_, 0), "a collective");
}

void CudaLine::device_after(Ticket ticket) {
  if (ticket <= joined_) return;
  LATHE_CHECK(ticket <= last_, "collective {} is to come", ticket);
  check_cuda(cudaStreamWaitEvent(device_stream_, event_of(ticket), 0), "a collective");
  joined_ = std::max(joined_, std::max(ticket, last_ - kEvents + 1));
}

// The youngest ones have events of their own; for an older one the oldest of these must do.
cudaEvent_t CudaLine::event_of(Ticket ticket) const {
  const Ticket known = std::max(ticket, last_ - kEvents + 1);
  return events_[static_cast<size_t>(known % kEvents)];
}

void CudaLine::wait(Ticket ticket, const std::function<void()>& check) {
  LATHE_CHECK(!recording(), "the host waits while a recording is made");
  Backoff backoff(std::numeric_limits<double>::infinity());
  const auto look = [&] {
    // What was recorded has no events outside; the device comes after it.
    return ticket <= joined_ ? cudaStreamQuery(device_stream_) : cudaEventQuery(event_of(ticket));
  };
  for (cudaError_t state = look(); state != cudaSuccess; state = look()) {
    if (state != cudaErrorNotReady) check_cuda(state, "a collective");
    check();
    backoff.idle();
  }
  device_after(ticket);  // a recording may begin now
}

}  // namespace lathe
