// The table of kernels/ops.h for the CPU.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace lathe::cpu {

class MatmulContext;

// The table for fp32, bf16 or fp64 (CheckError for others). `matmul` outlives it.
std::unique_ptr<Ops> make_cpu_ops(DType dtype, MatmulContext& matmul);

}  // namespace lathe::cpu
