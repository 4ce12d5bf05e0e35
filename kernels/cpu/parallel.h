// Parallel loops for the elementwise and row-wise CPU kernels.
#pragma once

#include <cstdint>

namespace lathe::cpu {

// Loops over fewer elements stay on the calling thread: waking the others would cost more.
inline constexpr int64_t kParallelElements = 16384;

// body(i) for i in [0, count), on all threads if the whole loop works on enough elements to make it
// worthwhile. Iterations are independent of each other and do not throw.
template <typename Body>
void parallel_for(int64_t count, int64_t elements, const Body& body) {
#pragma omp parallel for schedule(static) if (elements >= kParallelElements)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace lathe::cpu
