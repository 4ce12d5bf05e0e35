// Column sums of x [R, C]: the gradient of a bias.
//
//   sums[c] (+)= sum_r x[r, c]
//
// Layout: x is row-major. A block of 32 x 8 threads takes 32 V columns (V elements are 16 bytes)
// and kRowsOfBlock rows. Lanes are neighbours along a row, so a warp reads 512 bytes at a time.
// Thread (l, w) sums rows w, w + 8, ... of the block's rows; the eight sums of a column meet in
// shared memory and are added in order. The blocks' sums, [G, C] with G = R / kRowsOfBlock, go to
// the workspace, and add_partials adds them. G and all orders depend on the shape alone.
//
// add_partials: a block of 32 x 32 threads takes 32 columns; thread (x, y) adds rows y, y + 32, ...
// of its column, then the 32 sums of a column are added as a tree.
//
// Roofline: R C sizeof(T) bytes read once, one addition each: memory-bound. The second pass reads
// 4 G C bytes, 1 / 128 (bf16) of that.
#include "kernels/cuda/column_sums.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kRowsOfBlock = 256;

template <typename T, int V>
__global__ void __launch_bounds__(kWarp* kColumnRows)
    column_sums_kernel(float* sums, const T* x, int64_t rows, int64_t columns,
                       int64_t rows_of_block, bool accumulate) {
  const int64_t first_column = (int64_t{blockIdx.x} * kWarp + threadIdx.x) * V;
  const int64_t first_row = int64_t{blockIdx.y} * rows_of_block;
  const int64_t last_row = first_row + rows_of_block < rows ? first_row + rows_of_block : rows;
  float sum[V] = {};
  if (first_column < columns) {
#pragma unroll 4
    for (int64_t r = first_row + threadIdx.y; r < last_row; r += kColumnRows) {
      const auto values = Vec<T, V>::load(x + r * columns + first_column);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += to_float(values.at[i]);
    }
  }
  add_up_columns(sum, sums + int64_t{blockIdx.y} * columns, columns, accumulate);
}

struct Partials {
  float *first, *second, *third;  // outputs
  const float* partials;          // [count, outputs, columns]
  int64_t count, columns;
  bool accumulate;
};
__global__ void __launch_bounds__(kWarp* kWarp) add_partials_kernel(Partials p) {
  float* const output = blockIdx.y == 0 ? p.first : blockIdx.y == 1 ? p.second : p.third;
  if (output == nullptr) return;
  auto* sums = reinterpret_cast<float*>(ptx::shared_memory());  // [32, 33]: each row in other banks
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarp, column = first + threadIdx.x;
  const int64_t row = gridDim.y * p.columns;
  float sum = 0;
  if (column < p.columns) {
    for (int64_t n = threadIdx.y; n < p.count; n += kWarp)
      sum += p.partials[n * row + blockIdx.y * p.columns + column];
  }
  sums[threadIdx.y * (kWarp + 1) + threadIdx.x] = sum;
  __syncthreads();
  sum = warp_reduce(sums[threadIdx.x * (kWarp + 1) + threadIdx.y], Sum());
  const int64_t c = first + threadIdx.y;
  if (threadIdx.x == 0 && c < p.columns) output[c] = p.accumulate ? output[c] + sum : sum;
}

template <typename T>
__global__ void __launch_bounds__(256)
    broadcast_rows_kernel(T* d, const T* row, int64_t rows, int64_t columns, int64_t ld) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const T value = row[column];
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) d[r * ld + column] = value;
}

// Rows that a block sums: more if the grid would otherwise be taller than kTallestGrid.
int64_t rows_of_block(int64_t rows) {
  constexpr int64_t kTallestGrid = 4096;
  return std::max<int64_t>(kRowsOfBlock, ceil_div(rows, kTallestGrid));
}

template <typename T, int V>
void launch_sums(float* sums, const T* x, int64_t rows, int64_t columns, int64_t block_rows,
                 bool accumulate, cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(ceil_div(columns, kWarp * V)),
                               static_cast<unsigned>(ceil_div(rows, block_rows))),
                          dim3(kWarp, kColumnRows), column_sums_shared<V>};
  launch(column_sums_kernel<T, V>, shape, stream, sums, x, rows, columns, block_rows, accumulate);
}

template <typename T>
void column_sums_of(float* sums, const T* x, int64_t rows, int64_t columns, bool accumulate,
                    const Tensor& workspace, cudaStream_t stream) {
  const int64_t block_rows = rows_of_block(rows), blocks = ceil_div(rows, block_rows);
  float* first = sums;
  if (blocks > 1) {
    check_workspace(workspace, column_sums_workspace(rows, columns));
    first = static_cast<float*>(workspace.data);
  }
  const bool add = accumulate && blocks == 1;
  if (vectorizes<T>(x, columns)) {
    launch_sums<T, kVec<T>>(first, x, rows, columns, block_rows, add, stream);
  } else {
    launch_sums<T, 1>(first, x, rows, columns, block_rows, add, stream);
  }
  if (blocks > 1) add_partials({sums}, first, blocks, columns, accumulate, stream);
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
                 bool accumulate, const Tensor& workspace, cudaStream_t stream) {
  LATHE_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "{}", name_of(dtype));
  LATHE_CHECK(rows > 0);
  if (dtype == DType::fp32) {
    column_sums_of(sums_n, static_cast<const float*>(x), rows, columns, accumulate, workspace,
                   stream);
  } else {
    column_sums_of(sums_n, static_cast<const __nv_bfloat16*>(x), rows, columns, accumulate,
                   workspace, stream);
  }
}

void add_partials(std::initializer_list<float*> outputs, const float* partials, int64_t count,
                  int64_t columns, bool accumulate, cudaStream_t stream) {
  LATHE_CHECK(outputs.size() <= 3);
  const auto output = [&](size_t i) { return i < outputs.size() ? outputs.begin()[i] : nullptr; };
  const Partials p{output(0), output(1), output(2), partials, count, columns, accumulate};
  const LaunchShape shape{
      dim3(static_cast<unsigned>(ceil_div(columns, kWarp)), static_cast<unsigned>(outputs.size())),
      dim3(kWarp, kWarp), sizeof(float) * kWarp * (kWarp + 1)};
  launch(add_partials_kernel, shape, stream, p);
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
