// GELU (Hendrycks and Gimpel, 2016) and its derivative in fp32. Every product and sum is written
// out, so that the compiler contracts them the same way wherever they are inlined: fused and
// unfused operations give the same bits. Clamps keep exponentials in range and avoid 0 times
// infinity; NaN passes through.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/ptx.cuh"
#include "kernels/ops.h"

namespace lathe::cuda {

__device__ __forceinline__ float clamped(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// exp(-2 u) with u = sqrt(2/pi) (x + 0.044715 x^3): 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)). The
// factors hold log2(e), for exp2. |x| <= 10.
__device__ __forceinline__ float gelu_exponential(float x) {
  constexpr float kLinear = static_cast<float>(-1.59576912160573071 * 1.44269504088896341);
  constexpr float kCubic = static_cast<float>(-0.071354816272600249 * 1.44269504088896341);
  return ptx::exp2(__fmul_rn(x, __fmaf_rn(kCubic, __fmul_rn(x, x), kLinear)));
}

// Phi(x), the normal distribution's cumulative distribution function.
__device__ __forceinline__ float normal_cdf(float x) {
  return __fmaf_rn(0.5f, erff(__fmul_rn(x, 0.707106781f)), 0.5f);
}

template <Gelu kGelu>
__device__ __forceinline__ float gelu(float x) {
  static_assert(kGelu != Gelu::none);
  const float bounded = x < -40.0f ? -40.0f : x;
  if constexpr (kGelu == Gelu::exact) return __fmul_rn(bounded, normal_cdf(x));
  return __fdividef(bounded, __fadd_rn(1.0f, gelu_exponential(clamped(x, -10.0f, 10.0f))));
}

template <Gelu kGelu>
__device__ __forceinline__ float gelu_gradient(float x) {
  static_assert(kGelu != Gelu::none);
  if constexpr (kGelu == Gelu::exact) {  // Phi(x) + x phi(x)
    constexpr float kHalfLog2e = static_cast<float>(-0.5 * 1.44269504088896341);
    const float c = clamped(x, -13.0f, 13.0f);
    const float density =
        __fmul_rn(0.398942280f, ptx::exp2(__fmul_rn(kHalfLog2e, __fmul_rn(c, c))));
    return __fmaf_rn(c, density, normal_cdf(c));
  } else {  // s + x s (1 - s) 2 u'(x), s the logistic function of 2 u
    const float c = clamped(x, -10.0f, 10.0f);
    const float e = gelu_exponential(c), s = __fdividef(1.0f, __fadd_rn(1.0f, e));
    const float slope = __fmaf_rn(0.214064449f, __fmul_rn(c, c), 1.59576912f);
    return __fmaf_rn(__fmul_rn(__fmul_rn(c, s), __fmul_rn(e, s)), slope, s);
  }
}

}  // namespace lathe::cuda
