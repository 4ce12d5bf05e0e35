// What the GPU returns while it keeps running: small results, and the times of marks.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <vector>

#include "kernels/device/device.h"

namespace lathe::cuda {

// Implements the functions of Device with the same names; read-backs are on one stream.
class Feedback {
 public:
  explicit Feedback(cudaStream_t stream) : stream_(stream) {}
  ~Feedback();
  Feedback(const Feedback&) = delete;
  Feedback& operator=(const Feedback&) = delete;

  void read_back(int slot, const Tensor& source);
  void collect(int slot, void* destination);

  // On any stream. May be captured into a graph, whose launches then record the mark.
  void mark(int number, cudaStream_t stream);
  double milliseconds_between(int from, int to) const;

 private:
  // Pinned memory that a copy of `bytes` goes to, and the event of its arrival.
  struct Slot {
    void* pinned = nullptr;
    size_t bytes = 0;
    cudaEvent_t arrived = nullptr;
  };
  static constexpr size_t kSlotBytes = 4096;

  cudaStream_t stream_;
  std::array<Slot, Device::kReadBacks> slots_;
  std::vector<cudaEvent_t> marks_;
};

}  // namespace lathe::cuda
