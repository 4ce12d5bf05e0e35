// Parallel loops of the CPU kernels that hold elementwise or row-wise work.
#pragma once

#include <cstdint>

namespace lathe::cpu {

// Loops over fewer elements than this stay on the calling thread: waking the others costs more.
inline constexpr int64_t kParallelElements = 16384;

// body(i) for i in [0, count), on all threads where the number of elements that the whole loop
// works on says that it is worth it. Iterations are independent of each other and do not throw.
template <typename Body>
void parallel_for(int64_t count, int64_t elements, const Body& body) {
#pragma omp parallel for schedule(static) if (elements >= kParallelElements)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace lathe::cpu
