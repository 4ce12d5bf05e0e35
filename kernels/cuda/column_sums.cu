// Column sums of x [R, C]: the gradient of a bias.
//
//   sums[c] (+)= sum_r x[r, c]
//
// Layout: x is row-major. A block of 32 x 8 threads takes 32 V columns (V = 16 bytes' worth) and
// kRowsOfBlock rows; lanes are neighbours along a row, so a warp reads 512 bytes at a time. Thread
// (l, w) sums rows w, w + 8, ... of the block's rows; the eight sums of a column meet in shared
// memory and are added in order. The blocks' sums, [G, C] with G = R / kRowsOfBlock, go to the
// workspace, and the same kernel adds them up. G and all orders follow from the shape alone.
//
// Roofline: R C sizeof(T) bytes read once, one addition each: memory-bound. The second pass reads
// 4 G C bytes, 1 / 128 (bf16) of that.
#include "kernels/cuda/column_sums.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace lathe::cuda {

namespace {

constexpr int kRowThreads = 8, kRowsOfBlock = 256;

template <typename T, int V>
__global__ void __launch_bounds__(kWarp* kRowThreads)
    column_sums_kernel(float* sums, const T* x, int64_t rows, int64_t columns, int64_t ld,
                       int64_t rows_of_block, bool accumulate) {
  const int64_t first_column = (int64_t{blockIdx.x} * kWarp + threadIdx.x) * V;
  const int64_t first_row = int64_t{blockIdx.y} * rows_of_block;
  const int64_t last_row = first_row + rows_of_block < rows ? first_row + rows_of_block : rows;
  float sum[V] = {};
  if (first_column < columns) {
#pragma unroll 4
    for (int64_t r = first_row + threadIdx.y; r < last_row; r += kRowThreads) {
      const auto values = Vec<T, V>::load(x + r * ld + first_column);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += to_float(values.at[i]);
    }
  }
  // [kRowThreads][V][kWarp]: neighbouring lanes in neighbouring banks.
  auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
#pragma unroll
  for (int i = 0; i < V; ++i) shared[(threadIdx.y * V + i) * kWarp + threadIdx.x] = sum[i];
  __syncthreads();
  for (int c = threadIdx.y * kWarp + threadIdx.x; c < V * kWarp; c += kRowThreads * kWarp) {
    const int64_t column = int64_t{blockIdx.x} * kWarp * V + c;
    if (column >= columns) continue;
    const int lane = c / V, i = c % V;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kRowThreads; ++w) total += shared[(w * V + i) * kWarp + lane];
    float* to = sums + int64_t{blockIdx.y} * columns + column;
    *to = accumulate ? *to + total : total;
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    broadcast_rows_kernel(T* d, const T* row, int64_t rows, int64_t columns, int64_t ld) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const T value = row[column];
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) d[r * ld + column] = value;
}

// Rows that a block sums: grows where so many rows would need a taller grid than CUDA allows.
int64_t rows_of_block(int64_t rows) {
  constexpr int64_t kTallestGrid = 4096;
  return std::max<int64_t>(kRowsOfBlock, ceil_div(rows, kTallestGrid));
}

template <typename T, int V>
void launch_sums(float* sums, const T* x, int64_t rows, int64_t columns, int64_t ld,
                 int64_t block_rows, bool accumulate, cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(ceil_div(columns, kWarp * V)),
                               static_cast<unsigned>(ceil_div(rows, block_rows))),
                          dim3(kWarp, kRowThreads), kRowThreads * kWarp * V * sizeof(float)};
  launch(column_sums_kernel<T, V>, shape, stream, sums, x, rows, columns, ld, block_rows,
         accumulate);
}

template <typename T>
void column_sums_of(float* sums, const T* x, int64_t rows, int64_t columns, int64_t ld,
                    bool accumulate, const Tensor& workspace, cudaStream_t stream) {
  const int64_t block_rows = rows_of_block(rows), blocks = ceil_div(rows, block_rows);
  float* first = sums;
  if (blocks > 1) {
    check_workspace(workspace, column_sums_workspace(rows, columns));
    first = static_cast<float*>(workspace.data);
  }
  const bool add = accumulate && blocks == 1;
  if (vectorizes<T>(x, columns) && ld % kVec<T> == 0) {
    launch_sums<T, kVec<T>>(first, x, rows, columns, ld, block_rows, add, stream);
  } else {
    launch_sums<T, 1>(first, x, rows, columns, ld, block_rows, add, stream);
  }
  // One column a thread here: few values, so as many threads as can be had.
  if (blocks > 1)
    launch_sums<float, 1>(sums, first, blocks, columns, columns, blocks, accumulate, stream);
}

template <typename T>
void broadcast_rows_of(T* d, const T* row, int64_t rows, int64_t columns, int64_t ld,
                       cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(ceil_div(columns, 256)),
                               static_cast<unsigned>(std::min<int64_t>(rows, 1024))),
                          dim3(256)};
  launch(broadcast_rows_kernel<T>, shape, stream, d, row, rows, columns, ld);
}

}  // namespace

size_t column_sums_workspace(int64_t rows, int64_t columns) {
  const int64_t blocks = ceil_div(rows, rows_of_block(rows));
  return blocks > 1 ? static_cast<size_t>(blocks * columns) * sizeof(float) : 0;
}

void column_sums(float* sums_n, const void* x, DType dtype, int64_t rows, int64_t columns,
                 int64_t ld, bool accumulate, const Tensor& workspace, cudaStream_t stream) {
  LATHE_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "{}", name_of(dtype));
  LATHE_CHECK(rows > 0 && ld >= columns);
  if (dtype == DType::fp32) {
    column_sums_of(sums_n, static_cast<const float*>(x), rows, columns, ld, accumulate, workspace,
                   stream);
  } else {
    column_sums_of(sums_n, static_cast<const __nv_bfloat16*>(x), rows, columns, ld, accumulate,
                   workspace, stream);
  }
}

void broadcast_rows(void* d, const void* row_n, DType dtype, int64_t rows, int64_t columns,
                    int64_t ld, cudaStream_t stream) {
  LATHE_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "{}", name_of(dtype));
  if (dtype == DType::fp32) {
    broadcast_rows_of(static_cast<float*>(d), static_cast<const float*>(row_n), rows, columns, ld,
                      stream);
  } else {
    broadcast_rows_of(static_cast<__nv_bfloat16*>(d), static_cast<const __nv_bfloat16*>(row_n),
                      rows, columns, ld, stream);
  }
}

}  // namespace lathe::cuda
