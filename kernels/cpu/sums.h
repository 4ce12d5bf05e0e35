// Sums of a row or a block in an order that neither threads nor the vector width change: element i
// goes to lane i % kSumLanes, and the lanes are added as a binary tree.
#pragma once

#include <cstdint>

namespace lathe {

inline constexpr int kSumLanes = 64;  // four vectors of 16 floats in flight hide the add's latency

template <typename A>
A sum_lanes(A* lanes) {
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

// The sum of term(i) for i in [0, count).
template <typename A, typename Term>
A sum_of(int64_t count, const Term& term) {
  A lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
#pragma omp simd
    for (int j = 0; j < kSumLanes; ++j) lanes[j] += term(i + j);
  }
  const int rest = static_cast<int>(count - i);
  for (int j = 0; j < rest; ++j) lanes[j] += term(i + j);
  return sum_lanes(lanes);
}

}  // namespace lathe
