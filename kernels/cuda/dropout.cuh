// Dropout masks in kernels, as kernels/ops.h defines them.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/philox.h"

namespace lathe::cuda {

// What a kernel needs to draw a mask. Passed by value; what changes from step to step is read from
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

  // The four words of elements 4 group .. 4 group + 3. Only if active.
  __device__ __forceinline__ std::array<uint32_t, 4> words(uint64_t group) const {
    return philox(inputs->seed, group, place, inputs->step);
  }
  __device__ __forceinline__ bool keeps(uint32_t word) const { return word >= threshold; }
  // The factor of one element: 0 or 1 / (1 - p); 1 if there is no dropout.
  __device__ __forceinline__ float factor(uint64_t element) const {
    if (!active) return 1.0f;
    return keeps(words(element / 4)[element % 4]) ? scale : 0.0f;
  }

  // The step's part of the counter, to be read once. Arbitrary if the mask is not active.
  __device__ __forceinline__ StepInputs read_inputs() const {
    return active ? *inputs : StepInputs{};
  }
  // The factors of kN neighbours. If kN is a multiple of 4, `element` must be one, too.
  template <int kN>
  __device__ __forceinline__ void factors(const StepInputs& step, uint64_t element,
                                          float (&out)[kN]) const {
    constexpr int kDrawn = kN < 4 ? kN : 4;
    static_assert(kN == 1 || kN % 4 == 0);
#pragma unroll
    for (int first = 0; first < kN; first += kDrawn) {
      const auto drawn = philox(step.seed, (element + first) / 4, place, step.step);
      if constexpr (kN == 1) {
        out[0] = keeps(pick(drawn, element % 4)) ? scale : 0.0f;
      } else {
#pragma unroll
        for (int i = 0; i < kDrawn; ++i) out[first + i] = keeps(drawn[i]) ? scale : 0.0f;
      }
    }
  }
  // words[i] without an array in local memory.
  static __device__ __forceinline__ uint32_t pick(const std::array<uint32_t, 4>& words,
                                                  uint64_t i) {
    return i < 2 ? (i == 0 ? words[0] : words[1]) : (i == 2 ? words[2] : words[3]);
  }

  const StepInputs* inputs;
  uint32_t place, threshold;
  float scale;
  bool active;
};

}  // namespace lathe::cuda
