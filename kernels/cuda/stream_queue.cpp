#include "kernels/cuda/stream_queue.h"

#include <limits>

#include "kernels/device/backoff.h"

namespace lathe::cuda {

StreamQueue::StreamQueue(Device& device, std::function<void()> while_waiting)
    : device_(device),
      while_waiting_(std::move(while_waiting)),
      device_stream_(static_cast<cudaStream_t>(device.stream())),
      stream_(Stream::urgent()),
      events_(kEvents) {
  check_cuda(cudaEventCreateWithFlags(&device_event_, cudaEventDisableTiming), "event");
  for (cudaEvent_t& event : events_)
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
}

// No call may come after this.
StreamQueue::~StreamQueue() {
  if (!calls_.empty() || !recorded_calls_.empty()) {
    cudaStreamSynchronize(stream_);
    cudaStreamSynchronize(device_stream_);
    device_.forget_recordings();
  }
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  cudaEventDestroy(device_event_);
}

bool StreamQueue::is_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "stream");
  return capture == cudaStreamCaptureStatusActive;
}

bool StreamQueue::recording() const {
  return is_recording(device_stream_);
}

void StreamQueue::begin() {
  // A recording captures this stream. A replay runs the recorded entries in streams of its own, so
  // the next entry must start after the replay.
  const bool outside = recording() ? !is_recording(stream_) : was_recorded_;
  if (outside) after_device();
}

Ticket StreamQueue::end() {
  ++last_;
  check_cuda(cudaEventRecord(event_of(last_), stream_), "queue");
  return last_;
}

void StreamQueue::call(std::function<void()> body) {
  while (!calls_.empty() && calls_.front().done) calls_.pop_front();
  HostCall& call = (recording() ? recorded_calls_ : calls_).emplace_back();
  call.body = std::move(body);
  const auto run = [](void* data) {
    auto& due = *static_cast<HostCall*>(data);
    due.body();
    due.done = true;
  };
  check_cuda(cudaLaunchHostFunc(stream_, run, &call), "queue");
}

void StreamQueue::after_device() {
  const bool begins = recording() && !is_recording(stream_);
  LATHE_CHECK(!begins || joined_ == last_,
              "a recording begins before entry {} of a queue was joined", last_);
  was_recorded_ |= begins;
  check_cuda(cudaEventRecord(device_event_, device_stream_), "queue");
  check_cuda(cudaStreamWaitEvent(stream_, device_event_, 0), "queue");
}

void StreamQueue::device_after(Ticket ticket) {
  if (ticket <= joined_) return;
  LATHE_CHECK(ticket <= last_, "entry {} is not in the queue yet", ticket);
  check_cuda(cudaStreamWaitEvent(device_stream_, event_of(ticket), 0), "queue");
  joined_ = std::max(joined_, std::max(ticket, last_ - kEvents + 1));
}

// Only the newest entries have events; for an older one, use the oldest of these.
cudaEvent_t StreamQueue::event_of(Ticket ticket) const {
  const Ticket known = std::max(ticket, last_ - kEvents + 1);
  return events_[static_cast<size_t>(known % kEvents)];
}

void StreamQueue::wait(Ticket ticket) {
  LATHE_CHECK(!recording(), "the host must not wait while recording");
  Backoff backoff(std::numeric_limits<double>::infinity());
  const auto look = [&] {
    // Recorded entries have no events outside the recording, but the device waits for them.
    return ticket <= joined_ ? cudaStreamQuery(device_stream_) : cudaEventQuery(event_of(ticket));
  };
  for (cudaError_t state = look(); state != cudaSuccess; state = look()) {
    if (state != cudaErrorNotReady) check_cuda(state, "queue");
    if (while_waiting_) while_waiting_();
    backoff.idle();
  }
  device_after(ticket);  // so that a recording may begin
}

Ticket StreamQueue::mark(int number) {
  begin();
  device_.mark_on(stream_, number);
  return end();
}

}  // namespace lathe::cuda
