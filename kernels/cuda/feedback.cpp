#include "kernels/cuda/feedback.h"

#include <cstring>

#include "kernels/cuda/launch.h"

namespace lathe::cuda {

Feedback::~Feedback() {
  for (const Slot& slot : slots_) {
    if (slot.arrived) cudaEventDestroy(slot.arrived);
    cudaFreeHost(slot.pinned);
  }
  for (const cudaEvent_t mark : marks_) {
    if (mark) cudaEventDestroy(mark);  // not every number is used
  }
}

void Feedback::read_back(int slot_number, const Tensor& source) {
  Slot& slot = slots_.at(static_cast<size_t>(slot_number));
  LATHE_CHECK(source.bytes() <= kSlotBytes, "{} bytes are too many to read back", source.bytes());
  if (slot.pinned == nullptr) {
    check_cuda(cudaHostAlloc(&slot.pinned, kSlotBytes, cudaHostAllocDefault), "pinned memory");
    check_cuda(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming), "event");
  }
  slot.bytes = source.bytes();
  check_cuda(cudaMemcpyAsync(slot.pinned, source.data, slot.bytes, cudaMemcpyDeviceToHost, stream_),
             "results");
  check_cuda(cudaEventRecord(slot.arrived, stream_), "results");
}

void Feedback::collect(int slot_number, void* destination) {
  const Slot& slot = slots_.at(static_cast<size_t>(slot_number));
  LATHE_CHECK(slot.pinned != nullptr, "nothing was read back");
  check_cuda(cudaEventSynchronize(slot.arrived), "a step");
  std::memcpy(destination, slot.pinned, slot.bytes);
}

void Feedback::mark(int number, cudaStream_t stream) {
  const size_t index = static_cast<size_t>(number);
  if (index >= marks_.size()) marks_.resize(index + 1);
  if (marks_[index] == nullptr) check_cuda(cudaEventCreate(&marks_[index]), "mark");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "stream");
  // External: the graph records the event at each launch, and the host may query its time.
  const bool captured = capture == cudaStreamCaptureStatusActive;
  check_cuda(cudaEventRecordWithFlags(marks_[index], stream,
                                      captured ? cudaEventRecordExternal : cudaEventRecordDefault),
             "mark");
}

double Feedback::milliseconds_between(int from, int to) const {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, marks_.at(static_cast<size_t>(from)),
                                  marks_.at(static_cast<size_t>(to))),
             "marks");
  return static_cast<double>(milliseconds);
}

}  // namespace lathe::cuda
