// The counterpart of kernels/cuda/ptx.cuh, which describes each function: the same instructions in
// plain C++ over the 32 lanes of a warp.
#pragma once

#include <cstring>

#include "kernels/cuda_on_cpu/execution.h"

namespace lathe::cuda::ptx {

namespace detail {

using cuda_on_cpu::Site;

struct LoadMatrix {
  const void* row;  // this lane's address
  uint32_t* r;      // four registers of this lane
  bool transpose;
};
void load_matrices(void* const* records, unsigned mask);

struct MultiplyAdd {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
void multiply_add(void* const* records, unsigned mask);

// A lane's part of a wgmma.
struct Wgmma {
  float (*d)[4];
  const uint32_t* a;          // fragments, or null: a_tile
  const unsigned char* tile;  // b: 64 columns in rows of 128 bytes, from (row, column) on
  int row, column;
  const unsigned char* a_tile = nullptr;
  int a_row = 0, a_column = 0;
  bool add;
};
void check_matrix_descriptor(const void* tile);
void wgmma_m64n64k16(const Wgmma& product, const Site& site);
void warpgroup_commit();
void warpgroup_wait(int pending, const Site& site);

inline void ldmatrix(uint32_t* r, const void* row, bool transpose, const Site& site) {
  LoadMatrix record{row, r, transpose};
  cuda_on_cpu::meet_warp(0xffffffffu, "ldmatrix", &record, load_matrices, site);
}

}  // namespace detail

inline unsigned char* shared_memory() {
  return cuda_on_cpu::shared_memory();
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                        const detail::Site& site = detail::Site::current()) {
  detail::ldmatrix(r, row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                              const detail::Site& site = detail::Site::current()) {
  detail::ldmatrix(r, row, true, site);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         const detail::Site& site = detail::Site::current()) {
  detail::MultiplyAdd record{d, a, {b0, b1}};
  cuda_on_cpu::meet_warp(0xffffffffu, "mma", &record, detail::multiply_add, site);
}

inline unsigned block_index() {
  return blockIdx.x;
}

inline void store_16(void* global, const uint32_t (&words)[4]) {
  struct [[gnu::may_alias]] alignas(16) Words {
    uint32_t at[4];
  };
  *static_cast<Words*>(global) = {{words[0], words[1], words[2], words[3]}};
}

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  cuda_on_cpu::copy_async(shared, global, valid);
}
inline void cp_async_commit() {
  cuda_on_cpu::copy_async_commit();
}
template <int kPending>
inline void cp_async_wait() {
  cuda_on_cpu::copy_async_wait(kPending);
}

class MatrixDescriptor {
 public:
  explicit MatrixDescriptor(const void* tile) : tile_(static_cast<const unsigned char*>(tile)) {
    detail::check_matrix_descriptor(tile);
  }
  MatrixDescriptor from(int row, int column) const {
    MatrixDescriptor moved = *this;
    moved.row_ += row, moved.column_ += column;
    return moved;
  }

 private:
  friend void wgmma_m64n64k16(float (&)[8][4], const MatrixDescriptor&, const MatrixDescriptor&,
                              bool, const detail::Site&);
  friend void wgmma_m64n64k16(float (&)[8][4], const uint32_t (&)[4], const MatrixDescriptor&,
                              const detail::Site&);
  const unsigned char* tile_;
  int row_ = 0, column_ = 0;
};

inline void wgmma_m64n64k16(float (&d)[8][4], const MatrixDescriptor& a, const MatrixDescriptor& b,
                            bool add, const detail::Site& site = detail::Site::current()) {
  detail::wgmma_m64n64k16({.d = d,
                           .a = nullptr,
                           .tile = b.tile_,
                           .row = b.row_,
                           .column = b.column_,
                           .a_tile = a.tile_,
                           .a_row = a.row_,
                           .a_column = a.column_,
                           .add = add},
                          site);
}
inline void wgmma_m64n64k16(float (&d)[8][4], const uint32_t (&a)[4], const MatrixDescriptor& b,
                            const detail::Site& site = detail::Site::current()) {
  detail::wgmma_m64n64k16(
      {.d = d, .a = a, .tile = b.tile_, .row = b.row_, .column = b.column_, .add = true}, site);
}

inline void warpgroup_arrive() {
  cuda_on_cpu::arrive_for_wgmma();
}
inline void warpgroup_commit() {
  detail::warpgroup_commit();
}
template <int kPending, typename... Registers>
inline void warpgroup_wait(Registers&...) {
  detail::warpgroup_wait(kPending, detail::Site::current());
}
inline void fence_async_proxy() {}

inline void add_shifted(uint32_t (&low)[3], uint32_t (&high)[3], uint64_t value, int shift) {
  uint32_t* const sum = shift < 32 ? low : high;
  auto shifted = static_cast<unsigned __int128>(value) << (shift & 31);
  uint64_t carried = 0;
  for (int i = 0; i < 3; ++i, shifted >>= 32) {
    carried += uint64_t{sum[i]} + static_cast<uint32_t>(shifted);
    sum[i] = static_cast<uint32_t>(carried);
    carried >>= 32;
  }
}

inline float exp2(float x) {
  return cuda_on_cpu::exp2_approximated(x);
}

}  // namespace lathe::cuda::ptx
