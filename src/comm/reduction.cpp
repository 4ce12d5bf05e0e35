#include "src/comm/reduction.h"

#include <algorithm>
#include <type_traits>

#include "kernels/device/error.h"
#include "kernels/device/with_type.h"

namespace lathe {

namespace {

// The type in which values of type T are reduced: signed integers wrap as unsigned ones.
template <typename T>
struct Work {
  using type = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
};
template <>
struct Work<int32_t> {
  using type = uint32_t;
};
template <>
struct Work<int64_t> {
  using type = uint64_t;
};

struct Add {
  template <typename T, typename W>
  static W combine(W a, W b) {
    return static_cast<W>(a + b);
  }
};
// If x is NaN, a is returned; if y is NaN, `x > y` is false and b is returned.
struct Larger {
  template <typename T, typename W>
  static W combine(W a, W b) {
    using Ordered = std::conditional_t<std::is_integral_v<T>, T, W>;
    const auto x = static_cast<Ordered>(a), y = static_cast<Ordered>(b);
    return x != x || x > y ? a : b;
  }
};
struct Smaller {
  template <typename T, typename W>
  static W combine(W a, W b) {
    using Ordered = std::conditional_t<std::is_integral_v<T>, T, W>;
    const auto x = static_cast<Ordered>(a), y = static_cast<Ordered>(b);
    return x != x || x < y ? a : b;
  }
};

// In blocks that stay in the first-level cache while all sources are added to them.
template <typename T, typename Op>
void reduce_blocks(T* out, std::span<const void* const> sources, int64_t count) {
  using W = typename Work<T>::type;
  constexpr int64_t kBlock = 1024;
  W block[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    const T* const first = static_cast<const T*>(sources[0]) + at;
    for (int64_t i = 0; i < n; ++i) block[i] = static_cast<W>(first[i]);
    for (const void* source : sources.subspan(1)) {
      const T* const next = static_cast<const T*>(source) + at;
      for (int64_t i = 0; i < n; ++i)
        block[i] = Op::template combine<T, W>(block[i], static_cast<W>(next[i]));
    }
    for (int64_t i = 0; i < n; ++i) out[at + i] = static_cast<T>(block[i]);
  }
}

template <typename T>
void reduce_as(void* out, std::span<const void* const> sources, int64_t count, Reduction op) {
  T* const to = static_cast<T*>(out);
  switch (op) {
    case Reduction::sum:
      return reduce_blocks<T, Add>(to, sources, count);
    case Reduction::max:
      return reduce_blocks<T, Larger>(to, sources, count);
    case Reduction::min:
      return reduce_blocks<T, Smaller>(to, sources, count);
  }
}

}  // namespace

void reduce_in_order(void* out, std::span<const void* const> sources, int64_t count, DType dtype,
                     Reduction op) {
  LATHE_CHECK(!sources.empty());
  with_type(dtype, [&](auto zero) { reduce_as<decltype(zero)>(out, sources, count, op); });
}

}  // namespace lathe
