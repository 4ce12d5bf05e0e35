// Causal self-attention on the CPU: shared by the forward and backward passes. Flash attention (Dao
// et al., 2022; Dao, 2023): queries meet keys in blocks, the softmax is computed online, and
// nothing of size T x T is ever stored; blocks above the diagonal are skipped. Products, softmax
// and statistics are in Accumulator<T>. bf16 is read once, and rounded once when a result is
// stored.
//
// Every sum has an order fixed by the shapes alone, so any number of threads gives the same bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/threads.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/ops.h"

namespace lathe::cpu::attention {

using tile::Matrix;

inline constexpr int64_t kBlock = 64;  // queries and keys of a block of scores

// qkv is [B, T, 3 C], each of q, k, v [H, D].
struct Sizes {
  int64_t B, T, C, H, D;

  Sizes(const Tensor& qkv, int64_t n_head) {
    LATHE_CHECK(qkv.shape.rank == 3, "qkv is {}", to_string(qkv.shape));
    B = qkv.shape[0], T = qkv.shape[1], C = qkv.shape[2] / 3, H = n_head;
    LATHE_CHECK(H > 0 && C > 0 && 3 * C == qkv.shape[2] && C % H == 0, "qkv is {}, {} heads",
                to_string(qkv.shape), H);
    D = C / H;
  }
};

// Cuts scratch into arrays aligned to cache lines. Without memory it only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory = nullptr) : memory_(memory) {}
  template <typename A>
  A* take(int64_t elements) {
    std::byte* const start = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (static_cast<size_t>(elements) * sizeof(A) + 63) / 64 * 64;
    return reinterpret_cast<A*>(start);
  }
  template <typename A>
  Matrix<A> matrix(int64_t rows, int64_t columns) {
    return {take<A>(rows * columns), columns};
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  size_t bytes_ = 0;
};

// The calling thread's slice of the workspace.
inline std::byte* thread_slice(const Tensor& workspace, size_t bytes_per_thread) {
  return static_cast<std::byte*>(workspace.data) +
         static_cast<size_t>(thread_index()) * bytes_per_thread;
}

// Reads rows into scratch, with zeros in the columns that pad to a whole vector.
template <typename T, typename A = Accumulator<T>>
void read_rows(const T* from, int64_t from_stride, int64_t rows, int64_t columns, Matrix<A> to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += tile::kLanes<A>)
      tile::store(to.row(r) + c, tile::load_as<A>(from + r * from_stride + c, columns - c));
}

// Rounds rows of scratch into a tensor.
template <typename T, typename A = Accumulator<T>>
void write_rows(Matrix<A> from, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += tile::kLanes<A>)
      tile::store_as<A>(to + r * to_stride + c, tile::load(from.row(r) + c), columns - c);
}

// to[c][r] = block[r][c]. The block has room for whole vectors of rows; rows past `rows` become
// zeros.
template <typename A>
void transpose_rows(Matrix<A> block, int64_t rows, int64_t columns, Matrix<A> to) {
  constexpr int W = tile::kLanes<A>;
  for (int64_t r = rows; r < tile::padded<A>(rows); ++r)
    std::fill_n(block.row(r), tile::padded<A>(columns), A(0));
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W)
      tile::transpose_square<A>(block.row(r) + c, block.stride, to.row(c) + r, to.stride);
}

// The mask element of query 0, key 0 of a head.
inline uint64_t mask_element_of_head(const DropoutMask& mask, const Sizes& s, int64_t b,
                                     int64_t h) {
  const auto H = static_cast<uint64_t>(s.H), T = static_cast<uint64_t>(s.T);
  return ((mask.first_sequence() + static_cast<uint64_t>(b)) * H + static_cast<uint64_t>(h)) * T *
         T;
}

// exp(x), with x a score minus its maximum or logarithm of sums, so at most a little above 0.
// Results below exp(-87), the end of the normal numbers, are negligible beside the largest: zero.
inline float exp_of_score(float x) {
  const vecmath::Reduced d = vecmath::reduce(x < -87.0f ? -87.0f : x);
  return (1.0f + vecmath::expm1_core(d.r)) * vecmath::power_of_two(d.n);
}
inline double exp_of_score(double x) {
  return std::exp(x);
}

// The same for every lane, as straight vector code in float.
template <typename A>
inline tile::Vector<A> exp_of_scores(tile::Vector<A> x) {
  constexpr int W = tile::kLanes<A>;
  A lanes[W];
  tile::store(lanes, x);
#pragma omp simd
  for (int i = 0; i < W; ++i) lanes[i] = exp_of_score(lanes[i]);
  return tile::load(lanes);
}

// Zeroes a row of a block of scores from `first`, a multiple of a vector, on.
template <typename A>
inline void clear_from(A* row, int64_t first) {
  for (int64_t j = first; j < kBlock; j += tile::kLanes<A>) tile::store(row + j, tile::Vector<A>{});
}

}  // namespace lathe::cpu::attention
