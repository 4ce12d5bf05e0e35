// The table of kernels/ops.h for GPUs.
#pragma once

#include <memory>

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace lathe::cuda {

// The table for fp32 or bf16 (CheckError for others). `context` outlives it.
std::unique_ptr<Ops> make_cuda_ops(DType dtype, const Context& context);

}  // namespace lathe::cuda
