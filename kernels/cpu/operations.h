// The operations of kernels/ops.h on the CPU. Each has a file that defines it and ends with
// LATHE_CPU_OPERATION (define_operation.h). No header defines one, so a file may call an operation
// of another file.
#pragma once

#include "kernels/ops.h"

namespace lathe::cpu {

class MatmulContext;

// The operation with arguments Args, for number type T (float, bf16, double): checks its arguments
// (CheckError), then computes. `workspace` (uint8) has at least workspace_bytes(args), computed
// with the same number of threads; nothing else is allocated.
template <typename T, typename Args>
void run(const Args& args, MatmulContext& matmul, const Tensor& workspace);

// Reads shapes and number types only.
template <typename T, typename Args>
size_t workspace_bytes(const Args& args, MatmulContext& matmul);

}  // namespace lathe::cpu
