// Sizes rounded up to whole units, on the host and in kernels.
#pragma once

#include <type_traits>

namespace lathe {

// The number of units that hold n >= 0.
template <typename N, typename Unit>
constexpr std::common_type_t<N, Unit> ceil_div(N n, Unit unit) {
  return (n + unit - 1) / unit;
}

// The smallest multiple of `unit` that is at least n >= 0.
template <typename N, typename Unit>
constexpr std::common_type_t<N, Unit> round_up(N n, Unit unit) {
  return ceil_div(n, unit) * unit;
}

}  // namespace lathe
