// Launchers of the kernels in planted.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lathe::cuda {

enum class WgmmaMistake { none, no_fence, read_early, no_wait };

void launch_block_sum(float* sums, const float* x, int blocks, cudaStream_t stream);
void launch_reverse(float* y, const float* x, bool barrier, size_t shared, cudaStream_t stream);
void launch_reverse_async(float* y, const float* x, bool wait, cudaStream_t stream);
void launch_matrix_of(const float* x, cudaStream_t stream);
void launch_copy_into(float* y, const float* x, bool from_shared, cudaStream_t stream);
void launch_product_of_ones(float* y, WgmmaMistake mistake, cudaStream_t stream);
void launch_divergent_barrier(cudaStream_t stream);
void launch_two_barriers(cudaStream_t stream);
void launch_divergent_shuffle(float* y, cudaStream_t stream);
void launch_fill(float* y, int64_t count, float value, cudaStream_t stream);
void launch_copy(float* y, const float* x, cudaStream_t stream);

}  // namespace lathe::cuda
