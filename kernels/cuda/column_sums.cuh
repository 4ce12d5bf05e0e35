// The end of a kernel whose blocks sum columns.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"

namespace lathe::cuda {

// A block has kColumnRows rows of threads; each row is a warp, and each thread has V columns.
inline constexpr int kColumnRows = 8;
template <int V>
constexpr size_t column_sums_shared = sizeof(float) * kColumnRows* kWarp* V;

// sums[c] (+)= the sum over threadIdx.y, in that order, of the threads' sums of column c, which is
// (blockIdx.x kWarp + threadIdx.x) V + i. All threads call it, with column_sums_shared<V> bytes.
template <int V>
__device__ __forceinline__ void add_up_columns(const float (&sum)[V], float* sums, int64_t columns,
                                               bool accumulate) {
  // [kColumnRows][V][kWarp]: neighbouring lanes in neighbouring banks.
  auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
#pragma unroll
  for (int i = 0; i < V; ++i) shared[(threadIdx.y * V + i) * kWarp + threadIdx.x] = sum[i];
  __syncthreads();
  for (int c = threadIdx.y * kWarp + threadIdx.x; c < V * kWarp; c += kColumnRows * kWarp) {
    const int64_t column = int64_t{blockIdx.x} * kWarp * V + c;
    if (column >= columns) continue;
    const int lane = c / V, i = c % V;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kColumnRows; ++w) total += shared[(w * V + i) * kWarp + lane];
    sums[column] = accumulate ? sums[column] + total : total;
  }
}

}  // namespace lathe::cuda
