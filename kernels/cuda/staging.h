// Asynchronous copies from the host through pinned memory and a separate stream, so that a batch
// crosses the bus while the device still computes on the previous one.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/cuda/stream.h"

namespace lathe::cuda {

class Staging {
 public:
  // Uploads take effect in the order of the stream `compute`, which outlives this.
  explicit Staging(cudaStream_t compute);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // destination = source, in the order of the compute stream. On return `source` has been read.
  void upload(void* destination, const void* source, size_t bytes);

 private:
  // Pinned memory, its counterpart on the device, and when both may be used again.
  struct Slot {
    void* host = nullptr;
    void* device = nullptr;
    cudaEvent_t arrived = nullptr, consumed = nullptr;
  };
  Slot& free_slot();

  static constexpr size_t kSlotBytes = 256 * 1024;
  static constexpr size_t kMostSlots = 128;  // 32 MiB in flight, then the host waits

  cudaStream_t compute_;
  Stream copies_;
  std::vector<Slot> slots_;  // a ring: next_ is the least recently used
  size_t next_ = 0;
};

}  // namespace lathe::cuda
