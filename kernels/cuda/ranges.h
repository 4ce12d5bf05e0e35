// Named ranges of the host's time for NVIDIA's profilers (NVTX), in a domain "lathe". Without
// nvtx3's headers no_ranges.cpp replaces ranges.cpp, and nothing is shown.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/ops.h"

namespace lathe::cuda {

class Ranges {
 public:
  Ranges();
  // Per thread, nested. A cost other than 0 is attached as a payload {double flops, double bytes},
  // and shown in the name for reports without payloads: "NAME (F GFLOP, B GB)".
  void push(std::string_view name, const OpCost& cost);
  void pop();

 private:
  void* domain_ = nullptr;
  uint64_t schema_ = 0;  // of the payload, as the profiler numbers it
};

}  // namespace lathe::cuda
