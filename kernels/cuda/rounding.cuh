// Stochastic rounding of weights, as AdamW in kernels/ops.h defines it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <array>

#include "kernels/device/dtype.h"
#include "kernels/philox.h"

namespace lathe::cuda {

// The random words that round elements 4 group .. 4 group + 3 in update t.
__device__ __forceinline__ std::array<uint32_t, 4> rounding_words(uint64_t seed, uint64_t group,
                                                                  uint32_t t) {
  return philox(seed, group, kPhiloxSiteRounding, t);
}

__device__ __forceinline__ __nv_bfloat16 rounded_at_random(float x, uint32_t word) {
  __nv_bfloat16_raw raw;
  raw.x = stochastic_bf16_bits(__float_as_uint(x), word >> 16);
  return raw;
}

}  // namespace lathe::cuda
