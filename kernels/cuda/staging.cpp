#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/launch.h"

namespace lathe::cuda {

Staging::Staging(cudaStream_t compute) : compute_(compute) {}

Staging::~Staging() {
  cudaStreamSynchronize(compute_);
  for (const Slot& slot : slots_) {
    cudaFreeHost(slot.host);
    cudaFree(slot.device);
    cudaEventDestroy(slot.arrived);
    cudaEventDestroy(slot.consumed);
  }
}

// The least recently used slot if the device is done with it, else a new one. The host waits only
// if there are kMostSlots already.
Staging::Slot& Staging::free_slot() {
  if (!slots_.empty()) {
    Slot& oldest = slots_[next_];
    const cudaError_t state = cudaEventQuery(oldest.consumed);
    if (state != cudaErrorNotReady) check_cuda(state, "upload");
    if (state == cudaErrorNotReady && slots_.size() >= kMostSlots) {
      check_cuda(cudaEventSynchronize(oldest.consumed), "upload");
    }
    if (state != cudaErrorNotReady || slots_.size() >= kMostSlots) {
      next_ = (next_ + 1) % slots_.size();
      return oldest;
    }
  }
  Slot slot;
  check_cuda(cudaHostAlloc(&slot.host, kSlotBytes, cudaHostAllocDefault), "pinned memory");
  check_cuda(cudaMalloc(&slot.device, kSlotBytes), "memory for uploads");
  for (cudaEvent_t* event : {&slot.arrived, &slot.consumed})
    check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "event");
  const auto inserted = slots_.insert(slots_.begin() + static_cast<long>(next_), slot);
  next_ = (next_ + 1) % slots_.size();
  return *inserted;
}

void Staging::upload(void* destination, const void* source, size_t bytes) {
  for (size_t done = 0; done < bytes; done += kSlotBytes) {
    const size_t part = std::min(kSlotBytes, bytes - done);
    Slot& slot = free_slot();
    std::memcpy(slot.host, static_cast<const char*>(source) + done, part);
    check_cuda(cudaMemcpyAsync(slot.device, slot.host, part, cudaMemcpyHostToDevice, copies_),
               "upload");
    check_cuda(cudaEventRecord(slot.arrived, copies_), "upload");
    check_cuda(cudaStreamWaitEvent(compute_, slot.arrived, 0), "upload");
    check_cuda(cudaMemcpyAsync(static_cast<char*>(destination) + done, slot.device, part,
                               cudaMemcpyDefault, compute_),
               "upload");
    check_cuda(cudaEventRecord(slot.consumed, compute_), "upload");
  }
}

}  // namespace lathe::cuda
