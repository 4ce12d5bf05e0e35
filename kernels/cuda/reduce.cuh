// Sums and maxima over a warp and over a block, in an order that depends on the block size alone.
#pragma once

#include <cuda_runtime.h>

namespace lathe::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <typename A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Max {
  template <typename A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

// Every lane gets the result. All 32 lanes call it.
template <typename A, typename Op>
__device__ __forceinline__ A warp_reduce(A value, Op op) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// Every thread gets the result. All threads of a block of kThreads (whole warps, in x) call it.
// `scratch` holds kThreads / 32 values in shared memory and may be reused after the call.
template <int kThreads, typename A, typename Op>
__device__ __forceinline__ A block_reduce(A value, A* scratch, Op op) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0);
  value = warp_reduce(value, op);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = scratch[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) value = op(value, scratch[w]);
    __syncthreads();
  }
  return value;
}

}  // namespace lathe::cuda
