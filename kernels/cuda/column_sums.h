// Sums over the rows of a matrix, in an order that depends on its shape alone, and its opposite.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>

#include "kernels/device/tensor.h"

namespace lathe::cuda {

// What column_sums may use of workspace at most for this many columns.
size_t column_sums_workspace(int64_t rows, int64_t columns);

// sums_n (+)= sum over rows of x [rows, columns], fp32 or bf16; in fp32.
void column_sums(float* sums_n, const void* x, DType dtype, int64_t rows, int64_t columns,
                 bool accumulate, const Tensor& workspace, cudaStream_t stream);

// outputs[i][c] (+)= sum over n of partials [count, outputs, columns]: what the blocks of a kernel
// have summed, each on its own. Up to three outputs, of which some may be null.
void add_partials(std::initializer_list<float*> outputs, const float* partials, int64_t count,
                  int64_t columns, bool accumulate, cudaStream_t stream);

// Every row of d [rows, columns], leading dimension `ld`, becomes row_n, of the same type.
void broadcast_rows(void* d, const void* row_n, DType dtype, int64_t rows, int64_t columns,
                    int64_t ld, cudaStream_t stream);

}  // namespace lathe::cuda
