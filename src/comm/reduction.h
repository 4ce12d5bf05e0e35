// Reductions over ranks, on host memory.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/device/dtype.h"
#include "src/comm/communicator.h"

namespace lathe {

// out = op over the sources, element by element, in their order: ((s0 + s1) + s2) + ..., in fp32
// for bf16, rounded once. Integer sums wrap. If a value is NaN, max and min return NaN. `out` may
// be one of the sources.
void reduce_in_order(void* out, std::span<const void* const> sources, int64_t count, DType dtype,
                     Reduction op);

}  // namespace lathe
