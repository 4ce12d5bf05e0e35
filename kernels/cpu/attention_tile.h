// The small dense products inside attention: tiles of a few rows by a few vectors whose sums stay
// in registers, on row-major blocks padded to whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/device/dtype.h"
#include "kernels/device/round.h"

namespace lathe::cpu::tile {

// Bytes of the widest vector of the target: 64 with AVX-512, 32 with AVX2.
inline constexpr int kVectorBytes = __BIGGEST_ALIGNMENT__;
// Vectors of sums that a tile holds; the rest of the register file is for its operands.
inline constexpr int kSums = kVectorBytes >= 64 ? 24 : 10;

template <typename A>
struct VectorOf {
  typedef A Aligned __attribute__((vector_size(kVectorBytes)));
  typedef A type __attribute__((vector_size(kVectorBytes), aligned(alignof(A)), may_alias));
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::Aligned;
template <typename A>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename A>
inline Vector<A> load(const A* from) {
  return *reinterpret_cast<const typename VectorOf<A>::type*>(from);
}
template <typename A>
inline void store(A* to, Vector<A> value) {
  *reinterpret_cast<typename VectorOf<A>::type*>(to) = value;
}

// Loads convert stored values to accumulators; stores round them back.
inline Vector<float> load_full(const float* from) {
  return load(from);
}
inline Vector<double> load_full(const double* from) {
  return load(from);
}
inline void store_full(float* to, Vector<float> value) {
  store(to, value);
}
inline void store_full(double* to, Vector<double> value) {
  store(to, value);
}

typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

inline Vector<float> load_full(const bf16* from) {
  const HalfWords bits = *reinterpret_cast<const HalfWords*>(from);
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Words) << 16);
}
inline void store_full(bf16* to, Vector<float> value) {
  const Words u = reinterpret_cast<Words>(value);
  const Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet_nan = (u >> 16) | 0x40;
  const Words bits = (u & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded;
  *reinterpret_cast<HalfWords*>(to) = __builtin_convertvector(bits, HalfWords);
}

// Up to a vector of `count` stored values; zeros in the other lanes.
template <typename A, typename T>
inline Vector<A> load_as(const T* from, int64_t count) {
  if (count >= kLanes<A>) return load_full(from);
  A lanes[kLanes<A>] = {};
  for (int i = 0; i < count; ++i) lanes[i] = static_cast<A>(from[i]);
  return load(lanes);
}

// Rounds the first `count` lanes (or all, if there are fewer) into storage.
template <typename A, typename T>
inline void store_as(T* to, Vector<A> value, int64_t count) {
  if (count >= kLanes<A>) return store_full(to, value);
  A lanes[kLanes<A>];
  store(lanes, value);
  for (int i = 0; i < count; ++i) to[i] = static_cast<T>(lanes[i]);
}

template <typename A>
constexpr int64_t padded(int64_t columns) {
  return round_up(columns, kLanes<A>);
}

template <typename A>
using Mask = typename VectorOf<A>::Mask;

template <typename A, int... I>
constexpr Mask<A> lane_numbers(std::integer_sequence<int, I...>) {
  return Mask<A>{I...};
}

// The first `count` lanes of a, the others of b.
template <typename V>
inline V lanes_below(int64_t count, V a, V b) {
  using A = std::remove_cvref_t<decltype(a[0])>;
  constexpr int W = kLanes<A>;
  constexpr Mask<A> kLane = lane_numbers<A>(std::make_integer_sequence<int, W>());
  using Index = typename VectorOf<A>::Index;
  return kLane < static_cast<Index>(std::min<int64_t>(count, W)) ? a : b;
}

template <typename A>
inline Vector<A> larger(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}

// Combines all lanes as a binary tree.
template <int S, typename A, typename Combine, int... I>
inline A reduce(Vector<A> x, const Combine& combine, std::integer_sequence<int, I...> lanes) {
  x = combine(x, __builtin_shuffle(x, Mask<A>{(I ^ S)...}));
  if constexpr (S == 1)
    return x[0];
  else
    return reduce<S / 2, A>(x, combine, lanes);
}
template <typename A>
inline A reduce_max(Vector<A> x) {
  return reduce<kLanes<A> / 2, A>(x, larger<A>, std::make_integer_sequence<int, kLanes<A>>());
}
template <typename A>
inline A reduce_sum(Vector<A> x) {
  return reduce<kLanes<A> / 2, A>(
      x, [](Vector<A> a, Vector<A> b) { return a + b; },
      std::make_integer_sequence<int, kLanes<A>>());
}

// The layout of the left factor: row r, step k is at a[r stride + k], or at a[k stride + r].
enum class Left { rows, columns };

// c[R, V vectors] (+)= a[R, steps] b[steps, V vectors].
template <int R, int V, Left kLeft, typename A>
void product_tile(int64_t steps, const A* a, int64_t a_stride, const A* b, int64_t b_stride, A* c,
                  int64_t c_stride, bool add) {
  constexpr int W = kLanes<A>;
  Vector<A> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = add ? load(c + r * c_stride + v * W) : Vector<A>{};
  for (int64_t k = 0; k < steps; ++k) {
    Vector<A> right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const A left = kLeft == Left::rows ? a[r * a_stride] : a[r];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
    a += kLeft == Left::rows ? 1 : a_stride;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * W, sum[r][v]);
}

// The rows of a tile that is V vectors wide.
template <int V>
inline constexpr int kTileRows = std::min(kSums / V, 8);

template <typename A>
struct Matrix {
  A* data;
  int64_t stride;
  A* row(int64_t r) const { return data + r * stride; }
};

template <typename A>
Matrix<const A> constant(Matrix<A> m) {
  return {m.data, m.stride};
}

// Runs the largest tile, of 8, 6, 4, 2 or 1 rows, that fits V vectors and `rows`; returns its rows.
template <int V, Left kLeft, typename A>
int64_t product_rows(int64_t rows, int64_t steps, const A* a, int64_t a_stride, const A* b,
                     int64_t b_stride, A* c, int64_t c_stride, bool add) {
  const auto run = [&]<int R>() -> int64_t {
    product_tile<R, V, kLeft>(steps, a, a_stride, b, b_stride, c, c_stride, add);
    return R;
  };
  constexpr int kMost = kTileRows<V>;
  if constexpr (kMost >= 8)
    if (rows >= 8) return run.template operator()<8>();
  if constexpr (kMost == 6)
    if (rows >= 6) return run.template operator()<6>();
  if constexpr (kMost >= 4)
    if (rows >= 4) return run.template operator()<4>();
  if (rows >= 2) return run.template operator()<2>();
  return run.template operator()<1>();
}

// How the causal mask cuts a product. Query q (of the block) sees keys 0 .. q + diagonal of the
// block.
enum class Causal {
  columns,    // rows are queries, columns are keys: the columns that no row sees are not computed
  last_step,  // rows are queries, steps are keys: steps end at the last key that a row sees
  first_step  // rows are keys, steps are queries: steps begin at the first query that sees a row
};

// c[rows, vectors] (+)= a b within the causal mask, V vectors at a time.
template <int V, Causal kCausal, typename A>
void product_columns(int64_t rows, int64_t steps, int64_t diagonal, int64_t vector, int64_t vectors,
                     Matrix<const A> a, Matrix<const A> b, Matrix<A> c, bool add) {
  constexpr Left kLeft = kCausal == Causal::first_step ? Left::columns : Left::rows;
  const int64_t column = vector * kLanes<A>;
  for (int64_t r = 0; r < rows;) {
    const int64_t left = std::min<int64_t>(rows - r, kTileRows<V>);
    const int64_t seen = r + left + diagonal;  // keys that the last row of the tile sees
    int64_t first = 0, count = steps;
    if constexpr (kCausal == Causal::last_step) count = std::clamp<int64_t>(seen, 0, steps);
    if constexpr (kCausal == Causal::first_step) {
      first = std::clamp<int64_t>(r - diagonal, 0, steps);
      count = steps - first;
    }
    if constexpr (kCausal == Causal::columns && V > 1) {
      const int64_t needed = std::min<int64_t>(vectors, ceil_div(seen, kLanes<A>));
      if (needed - vector <= V - 1) {  // a narrower tile suffices for these rows
        if (needed > vector)
          product_columns<V - 1, kCausal>(left, steps, diagonal + r, vector, vectors,
                                          {a.row(r), a.stride}, b, {c.row(r), c.stride}, add);
        r += left;
        continue;
      }
    }
    const A* from = kLeft == Left::rows ? a.row(r) + first : a.row(first) + r;
    r += product_rows<V, kLeft>(left, count, from, a.stride, b.row(first) + column, b.stride,
                                c.row(r) + column, c.stride, add);
  }
}

// c[rows, vectors] (+)= a b within the causal mask. Parts of c that are not computed
// (Causal::columns) keep their value.
template <Causal kCausal, typename A>
void product(int64_t rows, int64_t steps, int64_t diagonal, int64_t vectors, Matrix<const A> a,
             Matrix<const A> b, Matrix<A> c, bool add) {
  constexpr int kWidest = 4;
  for (int64_t v = 0; v < vectors;) {
    const int64_t left = vectors - v;
    const int64_t width = left <= kWidest ? left : left < 2 * kWidest ? (left + 1) / 2 : kWidest;
    if (width == 4) product_columns<4, kCausal>(rows, steps, diagonal, v, vectors, a, b, c, add);
    if (width == 3) product_columns<3, kCausal>(rows, steps, diagonal, v, vectors, a, b, c, add);
    if (width == 2) product_columns<2, kCausal>(rows, steps, diagonal, v, vectors, a, b, c, add);
    if (width == 1) product_columns<1, kCausal>(rows, steps, diagonal, v, vectors, a, b, c, add);
    v += width;
  }
}

// One stage of the transposition of a square of vectors: swaps the off-diagonal squares of side S.
template <int S, typename A, int... I>
inline void transpose_stage(Vector<A>* rows, std::integer_sequence<int, I...>) {
  constexpr int W = kLanes<A>;
  constexpr typename VectorOf<A>::Mask kUpper = {((I & S) ? W + I - S : I)...};
  constexpr typename VectorOf<A>::Mask kLower = {((I & S) ? W + I : I + S)...};
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const Vector<A> upper = rows[i], lower = rows[i + S];
    rows[i] = __builtin_shuffle(upper, lower, kUpper);
    rows[i + S] = __builtin_shuffle(upper, lower, kLower);
  }
}

// to[c][r] = from[r][c] for a square of one vector's lanes.
template <typename A>
void transpose_square(const A* from, int64_t from_stride, A* to, int64_t to_stride) {
  constexpr int W = kLanes<A>;
  constexpr std::make_integer_sequence<int, W> kIndex;
  Vector<A> rows[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) rows[i] = load(from + i * from_stride);
  transpose_stage<1, A>(rows, kIndex);
  if constexpr (W > 2) transpose_stage<2, A>(rows, kIndex);
  if constexpr (W > 4) transpose_stage<4, A>(rows, kIndex);
  if constexpr (W > 8) transpose_stage<8, A>(rows, kIndex);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store(to + i * to_stride, rows[i]);
}

}  // namespace lathe::cpu::tile
