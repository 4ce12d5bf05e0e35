// Sums over ranks, in memory of the host.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/device/dtype.h"
#include "src/comm/communicator.h"

namespace lathe {

// out = op over the sources, element by element, in their order: ((s0 + s1) + s2) + ..., in fp32
// for bf16 and rounded once. Integer sums wrap; of a NaN and a number, max and min take the NaN.
// `out` may be one of the sources.
void reduce_in_order(void* out, std::span<const void* const> sources, int64_t count, DType dtype,
                     Reduction op);

}  // namespace lathe
