// Sums over the rows of a matrix: the gradient of a bias.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/parallel.h"
#include "kernels/device/dtype.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

// sums (+)= the column sums of x [rows, channels], first within blocks of rows, so that many rows
// lose no precision. Threads divide the channels, so any number of them gives the same order.
template <typename T>
void column_sums(const T* x, int64_t rows, int64_t channels, bool accumulate,
                 Accumulator<T>* sums) {
  using A = Accumulator<T>;
  constexpr int64_t kChannelBlock = 128, kRowBlock = 64;
  const int64_t blocks = ceil_div(channels, kChannelBlock);
  parallel_for(blocks, rows * channels, [&](int64_t block) {
    const int64_t c0 = block * kChannelBlock, count = std::min(kChannelBlock, channels - c0);
    A total[kChannelBlock] = {};
    for (int64_t n0 = 0; n0 < rows; n0 += kRowBlock) {
      A sum[kChannelBlock] = {};
      for (int64_t n = n0; n < std::min(rows, n0 + kRowBlock); ++n) {
        const T* row = x + n * channels + c0;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<A>(row[i]);
      }
      for (int64_t i = 0; i < count; ++i) total[i] += sum[i];
    }
    for (int64_t i = 0; i < count; ++i) sums[c0 + i] = (accumulate ? sums[c0 + i] : 0) + total[i];
  });
}

}  // namespace lathe::cpu
