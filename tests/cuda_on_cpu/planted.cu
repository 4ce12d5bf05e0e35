// Kernels with one mistake each, and one without, which the execution model must tell apart.
#include "tests/cuda_on_cpu/planted.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

// Block b's sum of 256 values from x + 256 b.
__global__ void block_sum(float* sums, const float* x) {
  auto* scratch = reinterpret_cast<float*>(ptx::shared_memory());
  const float sum = block_reduce<256>(x[blockIdx.x * 256 + threadIdx.x], scratch, Sum{});
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Rotates 256 values through shared memory.
template <bool kBarrier>
__global__ void reverse(float* y, const float* x) {
  auto* values = reinterpret_cast<float*>(ptx::shared_memory());
  values[threadIdx.x] = x[threadIdx.x];
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = values[255 - threadIdx.x];
}

// The same through cp.async.
template <bool kWait>
__global__ void reverse_async(float* y, const float* x) {
  auto* values = reinterpret_cast<float*>(ptx::shared_memory());
  if (threadIdx.x < 64) ptx::cp_async_16(values + 4 * threadIdx.x, x + 4 * threadIdx.x);
  ptx::cp_async_commit();
  if (kWait) ptx::cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = values[255 - threadIdx.x];
}

// ldmatrix of global memory, and cp.async into it or from shared memory.
__global__ void matrix_of(const float* x) {
  uint32_t r[4];
  ptx::ldmatrix_x4(r, x + 4 * (threadIdx.x % 8));
}
__global__ void copy_into(float* y, const float* x, bool from_shared) {
  auto* values = reinterpret_cast<float*>(ptx::shared_memory());
  if (from_shared) {
    ptx::cp_async_16(values, values + 4);
  } else {
    ptx::cp_async_16(y, x);
  }
  ptx::cp_async_wait<0>();
}

// y[t] = element [0][0] of thread t in the product of two matrices of ones: 16.
__global__ void product_of_ones(float* y, WgmmaMistake mistake) {
  auto* ones = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  for (unsigned i = threadIdx.x; i < 64 * 64; i += blockDim.x) ones[i] = 0x3f80;
  ptx::fence_async_proxy();
  __syncthreads();
  float d[8][4] = {};
  if (mistake != WgmmaMistake::no_fence) ptx::warpgroup_arrive();
  const ptx::MatrixDescriptor matrix(ones);
  ptx::wgmma_m64n64k16(d, matrix, matrix, /*add=*/false);
  ptx::warpgroup_commit();
  if (mistake == WgmmaMistake::read_early) y[threadIdx.x] = d[0][0];
  if (mistake != WgmmaMistake::no_wait) ptx::warpgroup_wait<0>(d);
  if (mistake != WgmmaMistake::read_early) y[threadIdx.x] = d[0][0];
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 100) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void divergent_shuffle(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 2 == 0) value = __shfl_xor_sync(kAllLanes, value, 2);
  y[threadIdx.x] = value;
}

__global__ void fill(float* y, int64_t count, float value) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = value;
}

__global__ void copy(float* y, const float* x) {
  y[threadIdx.x] = x[threadIdx.x];
}

}  // namespace

void launch_block_sum(float* sums, const float* x, int blocks, cudaStream_t stream) {
  launch(block_sum, {dim3(static_cast<unsigned>(blocks)), dim3(256), 8 * sizeof(float)}, stream,
         sums, x);
}
void launch_reverse(float* y, const float* x, bool barrier, size_t shared, cudaStream_t stream) {
  launch(barrier ? reverse<true> : reverse<false>, {dim3(1), dim3(256), shared}, stream, y, x);
}
void launch_reverse_async(float* y, const float* x, bool wait, cudaStream_t stream) {
  launch(wait ? reverse_async<true> : reverse_async<false>, {dim3(1), dim3(256), 1024}, stream, y,
         x);
}
void launch_matrix_of(const float* x, cudaStream_t stream) {
  launch(matrix_of, {dim3(1), dim3(32), 1024}, stream, x);
}
void launch_copy_into(float* y, const float* x, bool from_shared, cudaStream_t stream) {
  launch(copy_into, {dim3(1), dim3(1), 1024}, stream, y, x, from_shared);
}
void launch_product_of_ones(float* y, WgmmaMistake mistake, cudaStream_t stream) {
  launch(product_of_ones, {dim3(1), dim3(128), 64 * 64 * sizeof(uint16_t)}, stream, y, mistake);
}
void launch_divergent_barrier(cudaStream_t stream) {
  launch(divergent_barrier, {dim3(2), dim3(128), 0}, stream);
}
void launch_two_barriers(cudaStream_t stream) {
  launch(two_barriers, {dim3(1), dim3(256), 0}, stream);
}
void launch_divergent_shuffle(float* y, cudaStream_t stream) {
  launch(divergent_shuffle, {dim3(1), dim3(64), 0}, stream, y);
}
void launch_fill(float* y, int64_t count, float value, cudaStream_t stream) {
  launch(fill, {dim3(static_cast<unsigned>(ceil_div(count, 128))), dim3(128), 0}, stream, y, count,
         value);
}
void launch_copy(float* y, const float* x, cudaStream_t stream) {
  launch(copy, {dim3(1), dim3(256), 0}, stream, y, x);
}

}  // namespace lathe::cuda
