// Copies from the host that neither side waits for: through pinned memory and a stream of their
// own, so that a batch crosses the bus while the device still computes on the one before it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/cuda/stream.h"

namespace lathe::cuda {

class Staging {
 public:
  // `compute` is the stream in whose order uploads take effect; it outlives this.
  explicit Staging(cudaStream_t compute);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // destination = source, in the order of the compute stream. `source` has been read on return.
  void upload(void* destination, const void* source, size_t bytes);

 private:
  // Pinned memory, its counterpart on the device, and when they may be used again.
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
  std::vector<Slot> slots_;  // a ring: next_ is the one that was used longest ago
  size_t next_ = 0;
};

}  // namespace lathe::cuda
