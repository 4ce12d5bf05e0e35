// Dropout masks in kernels, by the definition in kernels/ops.h.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/philox.h"

namespace lathe::cuda {

// What a kernel needs to draw a mask: passed by value; what changes from step to step is read from
// device memory.
struct DropoutMask {
  explicit DropoutMask(const Dropout& dropout)
      : inputs(dropout.inputs),
        place(dropout.layer * 8 + static_cast<uint32_t>(dropout.site)),
        threshold(static_cast<uint32_t>(std::ceil(static_cast<double>(dropout.p) * 4294967296.0))),
        scale(1.0f / (1.0f - dropout.p)),
        active(dropout.p > 0) {
    LATHE_CHECK(dropout.p >= 0 && dropout.p < 1, "dropout {}", dropout.p);
    LATHE_CHECK(!active || inputs != nullptr);
  }

  // The four words of elements 4 group .. 4 group + 3. Only where active.
  __device__ __forceinline__ std::array<uint32_t, 4> words(uint64_t group) const {
    return philox(inputs->seed, group, place, inputs->step);
  }
  __device__ __forceinline__ bool keeps(uint32_t word) const { return word >= threshold; }
  // The factor of one element: 0 or 1 / (1 - p); 1 where there is no dropout.
  __device__ __forceinline__ float factor(uint64_t element) const {
    if (!active) return 1.0f;
    return keeps(words(element / 4)[element % 4]) ? scale : 0.0f;
  }

  const StepInputs* inputs;
  uint32_t place, threshold;
  float scale;
  bool active;
};

}  // namespace lathe::cuda
