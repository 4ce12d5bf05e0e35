// Operations of several kernels report which kernel comes next, if an observer is set
// (Device::observe_parts). Without one this costs a comparison with null.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/matmul.h"
#include "kernels/ops.h"

namespace lathe::cuda {

inline void begin_part(const Context& context, std::string_view name, const Shape& sizes,
                       const OpCost& cost) {
  if (context.parts != nullptr) context.parts->part(name, sizes, cost);
}

// The least that a matrix product needs: its FLOPs, each operand over the bus once, c twice if it
// is added to.
OpCost cost(const MatmulArgs& args);

// A matrix product that is a part of an operation.
void run_part(const Context& context, std::string_view name, const MatmulArgs& args,
              const Tensor& workspace);

}  // namespace lathe::cuda
