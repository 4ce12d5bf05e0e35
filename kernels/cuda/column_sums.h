// Sums over the rows of a matrix, in an order that depends on its shape alone, and the reverse.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>

#include "kernels/device/tensor.h"

namespace lathe::cuda {

// The largest workspace, in bytes, that column_sums uses for this shape.
size_t column_sums_workspace(int64_t rows, int64_t columns);

// sums_n (+)= sum over rows of x [rows, columns], fp32 or bf16; in fp32.
void column_sums(float* sums_n, const void* x, DType dtype, int64_t rows, int64_t columns,
                 bool accumulate, const Tensor& workspace, cudaStream_t stream);

// outputs[i][c] (+)= sum over n of partials [count, outputs, columns], where n counts the blocks of
// a kernel that have each written their own sums. Up to three outputs, some of which may be null.
void add_partials(std::initializer_list<float*> outputs, const float* partials, int64_t count,
                  int64_t columns, bool accumulate, cudaStream_t stream);

// Copies row_n into every row of d [rows, columns], leading dimension `ld`, of the same type.
void broadcast_rows(void* d, const void* row_n, DType dtype, int64_t rows, int64_t columns,
                    int64_t ld, cudaStream_t stream);

}  // namespace lathe::cuda
