// Philox over many counters at once. Compiled for vectors of 256 bits (see CMakeLists.txt).
#include "kernels/cpu/dropout.h"

namespace lathe::cpu {

void philox_words(uint64_t group, uint32_t place, uint32_t step, PhiloxKey key,
                  uint32_t* __restrict words) {
#pragma omp simd
  for (int i = 0; i < kPhiloxCounters; ++i) {
    const uint64_t g = group + static_cast<uint64_t>(i);
    uint32_t c0 = static_cast<uint32_t>(g), c1 = static_cast<uint32_t>(g >> 32);
    uint32_t c2 = place, c3 = step, k0 = key.low, k1 = key.high;
    for (int round = 0; round < 10; ++round) {  // philox4x32_10, written out for the vectoriser
      const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(product1);
      c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(product0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
  }
}

}  // namespace lathe::cpu
