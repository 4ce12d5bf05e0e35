// Operations of several kernels tell which of them comes next, if somebody asked
// (Device::observe_parts). Nobody asked: a comparison with null.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/matmul.h"
#include "kernels/ops.h"

namespace lathe::cuda {

inline void begin_part(const Context& context, std::string_view name, const Shape& sizes,
                       const OpCost& cost) {
  if (context.parts != nullptr) context.parts->part(name, sizes, cost);
}

// What a matrix product asks for at least: its FLOPs, each operand over the bus once, c twice where
// it is added to.
OpCost cost(const MatmulArgs& args);

// A matrix product that is a part of an operation.
void run_part(const Context& context, std::string_view name, const MatmulArgs& args,
              const Tensor& workspace);

}  // namespace lathe::cuda
