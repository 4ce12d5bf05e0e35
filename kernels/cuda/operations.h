// The operations of kernels/ops.h on the GPU. Each has a file that defines it and ends with
// LATHE_CUDA_OPERATION (define_operation.h). No header defines one, so a file may call an operation
// of another file.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace lathe::cuda {

// The operation with arguments Args, for storage type T (float, __nv_bfloat16): checks its
// arguments (CheckError), enqueues its work on the context's stream and returns. `workspace`
// (uint8) has at least workspace_bytes(args).
template <typename T, typename Args>
void run(const Args& args, const Context& context, const Tensor& workspace);

// Reads shapes and number types only.
template <typename T, typename Args>
size_t workspace_bytes(const Args& args, const Context& context);

}  // namespace lathe::cuda
