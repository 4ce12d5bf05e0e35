// Sums of a row or a block in an order that does not depend on threads or the vector width: element
// i goes to lane i % kSumLanes, and the lanes are added as a binary tree.
#pragma once

#include <cstdint>

namespace lathe::cpu {

inline constexpr int kLanes = 16, kSumLanes = 4 * kLanes;  // four sums hide the add's latency

// The sum of term(i) for i in [0, count). Term is passed by value and inlined, and the lanes are
// four arrays; otherwise GCC keeps them in memory.
template <typename A, typename Term>
[[gnu::always_inline]] inline A sum_of(int64_t count, Term term) {
  A a[kLanes] = {}, b[kLanes] = {}, c[kLanes] = {}, d[kLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      a[j] += term(i + j);
      b[j] += term(i + kLanes + j);
      c[j] += term(i + 2 * kLanes + j);
      d[j] += term(i + 3 * kLanes + j);
    }
  }
  for (A* lanes : {a, b, c, d}) {
    const int rest = static_cast<int>(count - i < kLanes ? count - i : kLanes);
    for (int j = 0; j < rest; ++j) lanes[j] += term(i + j);
    i += rest;
  }
#pragma omp simd
  for (int j = 0; j < kLanes; ++j) a[j] = (a[j] + b[j]) + (c[j] + d[j]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) a[j] += a[j + width];
  return a[0];
}

}  // namespace lathe::cpu
