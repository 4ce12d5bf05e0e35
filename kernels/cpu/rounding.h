// Stochastic rounding of weights, as AdamW in kernels/ops.h defines it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/cpu/dropout.h"

namespace lathe::cpu {

struct RandomRounding {
  uint64_t seed;
  uint32_t update;  // t

  // Elements [begin, end) of the tensors; element e is number e + shift of the flat parameters.
  void round(const float* source, int64_t begin, int64_t end, int64_t shift,
             bf16* destination) const {
    uint32_t words[kPhiloxWords];
    for (int64_t first = begin / 4 * 4; first < end; first += kPhiloxWords) {
      philox_words(static_cast<uint64_t>(first + shift) / 4, kPhiloxSiteRounding, update,
                   PhiloxKey(seed), words);
      const int64_t from = std::max(begin, first), to = std::min(end, first + kPhiloxWords);
#pragma omp simd
      for (int64_t i = from; i < to; ++i) {
        destination[i].bits =
            stochastic_bf16_bits(std::bit_cast<uint32_t>(source[i]), words[i - first] >> 16);
      }
    }
  }
};

}  // namespace lathe::cpu
