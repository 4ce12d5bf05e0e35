// Named stretches of the host's time for NVIDIA's profilers (NVTX), in a domain "lathe". Without
// nvtx3's headers no_ranges.cpp takes the place of ranges.cpp, and nothing is shown.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/ops.h"

namespace lathe::cuda {

class Ranges {
 public:
  Ranges();
  // Of one thread, nested. The cost goes along as a payload {double flops, double bytes}, and,
  // if there is one, in the name, for the reports that show no payload: "NAME (F GFLOP, B GB)".
  void push(std::string_view name, const OpCost& cost);
  void pop();

 private:
  void* domain_ = nullptr;
  uint64_t schema_ = 0;  // of the payload, as the profiler numbers it
};

}  // namespace lathe::cuda
