// Tiles of bf16 in shared memory and their products on tensor cores, for attention.
//
// A tile has kD columns, the head size padded to 32, 64, 96 or 128. Its rows are cut into chunks of
// 16 bytes. The chunks of a row are permuted (XOR with bits of the row's number) so that the eight
// rows that ldmatrix reads at once lie in different banks, as do the chunks that eight threads
// write at once. With 64 columns this is the swizzle by 128 bytes that wgmma reads
// (ptx::MatrixDescriptor).
//
// A warp owns 16 kM rows of a product. The sums of 16 x 8 of them are what mma.m16n8k16 calls D
// (ptx.cuh): sums[m][n][i] is row 16 m + lane / 4 + i / 2 * 8, column 8 n + lane % 4 * 2 + i % 2.
// Two neighbouring D, rounded to bf16, are one A of the next product: probabilities never leave
// the registers.
#pragma once

#include <cstring>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda::attention {

using Bf16 = __nv_bfloat16;

inline constexpr int kWarps = 4, kThreads = kWarps * kWarp;
inline constexpr int kChunk = 8;  // elements in 16 bytes

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// The offset in a tile of a chunk of a row.
template <int kD>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  static_assert(kD % 32 == 0);
  const int turn = kD % 64 == 0 ? row & 7 : row >> 1 & 3;  // 64 bytes: two rows span all banks
  return row * kD + (chunk ^ turn) * kChunk;
}

// Rows of one head in global memory.
struct GlobalRows {
  const Bf16* data;
  int stride;
  int head_size;
  bool vectorized;  // whether chunks are aligned to 16 bytes

  __device__ __forceinline__ GlobalRows from(int row) const {
    return {data + static_cast<int64_t>(row) * stride, stride, head_size, vectorized};
  }
};

// Starts to copy rows into a tile of kRows, with all threads of the block. Writes zeros into the
// rows from `count` on and into the columns that pad the head size. Complete after cp_async_wait
// and a barrier.
template <int kD, int kRows>
__device__ __forceinline__ void load_tile(Bf16* tile, const GlobalRows& rows, int count) {
  constexpr int kAcross = kD % 64 == 0 ? 8 : 4;  // threads per row
  constexpr int kDown = kThreads / kAcross;
  static_assert(kRows % kDown == 0 && kDown % 8 == 0);
  const int row = static_cast<int>(threadIdx.x) / kAcross;
  const int chunk = static_cast<int>(threadIdx.x) % kAcross;
  // The permutation is the same in every group of kAcross chunks and of 8 rows.
  Bf16* const to = tile + tile_offset<kD>(row, chunk);
  const Bf16* from = rows.from(row).data + chunk * kChunk;
  if (rows.vectorized) {
#pragma unroll
    for (int r = 0; r < kRows; r += kDown) {
#pragma unroll
      for (int c = 0; c < kD; c += kAcross * kChunk)
        ptx::cp_async_16(to + r * kD + c, from + c,
                         row + r < count && chunk * kChunk + c < rows.head_size);
      from += static_cast<int64_t>(kDown) * rows.stride;
    }
    return;
  }
#pragma unroll 1
  for (int r = 0; r < kRows; r += kDown, from += static_cast<int64_t>(kDown) * rows.stride) {
#pragma unroll 1
    for (int c = 0; c < kD; c += kAcross * kChunk) {
      Vec<Bf16, kChunk> values;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const bool valid = row + r < count && chunk * kChunk + c + i < rows.head_size;
        values.at[i] = valid ? from[c + i] : from_float<Bf16>(0);
      }
      values.store(to + r * kD + c);
    }
  }
}

// The left factor of a product: 16 kM rows of a tile. A warp keeps them in registers (kKept) or, if
// registers are short, reads them again each time.
template <int kD, int kM, bool kKept>
struct LeftRows {
  const Bf16* tile;
  int first;
  uint32_t kept[kM][kKept ? kD / 16 : 1][4];

  __device__ __forceinline__ LeftRows(const Bf16* tile, int first) : tile(tile), first(first) {
    if constexpr (kKept) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int k = 0; k < kD / 16; ++k) read(m, k, kept[m][k]);
      }
    }
  }
  __device__ __forceinline__ void read(int m, int k, uint32_t (&a)[4]) const {
    const int lane = lane_index();
    ptx::ldmatrix_x4(a, tile + tile_offset<kD>(first + 16 * m + lane % 16, 2 * k + lane / 16));
  }
  // A for rows from 16 m and columns from 16 k.
  __device__ __forceinline__ void fragment(int m, int k, uint32_t (&a)[4]) const {
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = kept[m][k][i];
    } else {
      read(m, k, a);
    }
  }
};

// sums[., n] += left . right^T, where `right` is 8 kN rows of a tile from row `first` on.
template <int kD, int kM, int kN, bool kKept>
__device__ __forceinline__ void multiply_by_rows(float (&sums)[kM][kN][4],
                                                 const LeftRows<kD, kM, kKept>& left,
                                                 const Bf16* right, int first) {
  const int lane = lane_index();
  const int row = first + lane / 16 * 8 + lane % 8, chunk = lane / 8 % 2;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) left.fragment(m, k, a[m]);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];  // rows 8 n .., columns 16 k .. and 16 k + 8 ..; then rows 8 n + 8 ..
      ptx::ldmatrix_x4(b, right + tile_offset<kD>(row + 8 * n, 2 * k + chunk));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        ptx::mma_m16n8k16(sums[m][n], a[m], b[0], b[1]);
        ptx::mma_m16n8k16(sums[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// sums += left . right, where `right` is 16 kK rows of a tile from row `first` on and `left` holds
// fragments.
template <int kD, int kM, int kK>
__device__ __forceinline__ void multiply_by_columns(float (&sums)[kM][kD / 8][4],
                                                    const uint32_t (&left)[kM][kK][4],
                                                    const Bf16* right, int first) {
  const int lane = lane_index();
#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int n = 0; n < kD / 8; n += 2) {
      uint32_t b[4];  // columns 8 n .., rows 16 k .. and 16 k + 8 ..; then columns 8 n + 8 ..
      ptx::ldmatrix_x4_trans(b, right + tile_offset<kD>(first + 16 * k + lane % 16, n + lane / 16));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        ptx::mma_m16n8k16(sums[m][n], left[m][k], b[0], b[1]);
        ptx::mma_m16n8k16(sums[m][n + 1], left[m][k], b[2], b[3]);
      }
    }
  }
}

// The same by wgmma, for tiles of 64 rows and 64 columns: sums = left .
// right^T, and sums += left . right. Complete after warpgroup_wait.
__device__ __forceinline__ void wgmma_by_rows(float (&sums)[8][4],
                                              const ptx::MatrixDescriptor& left,
                                              const ptx::MatrixDescriptor& right) {
#pragma unroll
  for (int k = 0; k < 64; k += 16)
    ptx::wgmma_m64n64k16(sums, left.from(0, k), right.from(0, k), /*add=*/k > 0);
}
__device__ __forceinline__ void wgmma_by_columns(float (&sums)[8][4], const uint32_t (&left)[4][4],
                                                 const ptx::MatrixDescriptor& right) {
#pragma unroll
  for (int k = 0; k < 4; ++k) ptx::wgmma_m64n64k16(sums, left[k], right.from(16 * k, 0));
}

// Sets what the causal mask hides to `value`. Rows are queries and columns keys, or the reverse
// with kOfKeys; `ahead` is the number of the first row minus that of the first column.
template <bool kOfKeys, int kM, int kN>
__device__ __forceinline__ void hide(float (&scores)[kM][kN][4], int ahead, float value) {
  const int lane = lane_index();
#pragma unroll
  for (int i = 0; i < kM * kN * 4; ++i) {
    const int m = i / (kN * 4), n = i / 4 % kN, e = i % 4;
    const int row = ahead + 16 * m + lane / 4 + e / 2 * 8, column = 8 * n + lane % 4 * 2 + e % 2;
    const bool hidden = kOfKeys ? row > column : column > row;
    if (hidden) scores[m][n][e] = value;
  }
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Rounds 16 x 8 kN values into the fragments of the next product.
template <int kN>
__device__ __forceinline__ void to_fragments(const float (&values)[kN][4],
                                             uint32_t (&fragments)[kN / 2][4]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    fragments[n / 2][n % 2 * 2] = pack(values[n][0], values[n][1]);
    fragments[n / 2][n % 2 * 2 + 1] = pack(values[n][2], values[n][3]);
  }
}

// Writes 16 rows of sums to the first `count` rows of `to`, with one factor for rows 0 to 7 and one
// for rows 8 to 15. They pass through 16 rows of a tile that are the warp's own, from row `first`,
// so that writes are 16 bytes each.
template <int kD>
__device__ __forceinline__ void store_rows(const float (&sums)[kD / 8][4], float factor0,
                                           float factor8, Bf16* tile, int first, Bf16* to,
                                           int stride, int count, int head_size, bool vectorized) {
  const int lane = lane_index();
  const int row = first + lane / 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    const int within = lane % 4 * 2;
    *reinterpret_cast<uint32_t*>(tile + tile_offset<kD>(row, n) + within) =
        pack(sums[n][0] * factor0, sums[n][1] * factor0);
    *reinterpret_cast<uint32_t*>(tile + tile_offset<kD>(row + 8, n) + within) =
        pack(sums[n][2] * factor8, sums[n][3] * factor8);
  }
  __syncwarp();
  constexpr int kChunks = kD / kChunk;
#pragma unroll 1
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int r = i / kChunks, column = i % kChunks * kChunk;
    if (r >= count || column >= head_size) continue;
    const auto chunk = Vec<Bf16, kChunk>::load(tile + tile_offset<kD>(first + r, i % kChunks));
    Bf16* const destination = to + static_cast<int64_t>(r) * stride + column;
    if (vectorized) {
      chunk.store(destination);
    } else {
#pragma unroll
      for (int c = 0; c < kChunk; ++c)
        if (column + c < head_size) destination[c] = chunk.at[c];
    }
  }
}

// After store_rows: replaces the stored rows by kD floats, the sums of their columns over the first
// `count` rows, as rounded.
template <int kD>
__device__ __forceinline__ void sum_stored_rows(Bf16* tile, int first, int count) {
  constexpr int kPairs = ceil_div(kD / 2, kWarp);  // pairs of columns per lane
  float sums[kPairs][2] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int column = 2 * (lane_index() + p * kWarp);
    if (column >= kD) break;
#pragma unroll 4
    for (int r = 0; r < 16; ++r) {
      if (r >= count) break;
      const auto pair =
          Vec<Bf16, 2>::load(tile + tile_offset<kD>(first + r, column / kChunk) + column % kChunk);
      sums[p][0] += to_float(pair.at[0]);
      sums[p][1] += to_float(pair.at[1]);
    }
  }
  __syncwarp();  // all lanes have read
  auto* const to = reinterpret_cast<float*>(tile + first * kD);
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int column = 2 * (lane_index() + p * kWarp);
    if (column < kD) to[column] = sums[p][0], to[column + 1] = sums[p][1];
  }
}

// After sum_stored_rows of all warps and a barrier: adds the warps' sums, in their order, to D
// floats.
template <int kD>
__device__ __forceinline__ void add_up_warps(const Bf16* tile, int head_size, float* to) {
  static_assert(kD <= kThreads);
  const int column = static_cast<int>(threadIdx.x);
  if (column >= head_size) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    sum += reinterpret_cast<const float*>(tile + 16 * w * kD)[column];
  to[column] = sum;
}

// Which of 16 x 8 kN mask elements are kept: bit 4 n + i is that of sums[n][i]. Rows are queries
// from `query` and columns keys from `key`, a multiple of 8. A Philox draw covers four consecutive
// keys, a thread's sums two of them. Of two neighbouring lanes, one draws for row lane / 4, the
// other for the row 8 below, and they exchange halves.
template <int kN>
__device__ __forceinline__ uint32_t keep_bits_of_queries(const HeadMask& mask, int query, int key) {
  static_assert(kN <= 8);
  const int lane = lane_index();
  uint32_t bits = 0;
  if (mask.aligned()) {
    const int own_query = query + lane / 4 + lane % 2 * 8, own_key = key + lane % 4 / 2 * 4;
#pragma unroll 2
    for (int n = 0; n < kN; ++n) bits |= mask.group(own_query, own_key + 8 * n) << 4 * n;
    const uint32_t other = __shfl_xor_sync(kAllLanes, bits, 1);
    constexpr uint32_t kLow = 0x33333333u;
    return lane % 2 == 0 ? (bits & kLow) | (other & kLow) << 2
                         : (other >> 2 & kLow) | (bits & ~kLow);
  }
#pragma unroll 1
  for (int i = 0; i < 4 * kN; ++i) {
    const bool kept =
        mask.keeps(query + lane / 4 + i % 4 / 2 * 8, key + i / 4 * 8 + lane % 4 * 2 + i % 2);
    bits |= (kept ? 1u : 0u) << i;
  }
  return bits;
}

// The same if rows are keys and columns queries. A draw's four keys are in four lanes, and each
// lane has four elements. Lane i of the four draws for the i-th element of all; then they exchange.
template <int kN>
__device__ __forceinline__ uint32_t keep_bits_of_keys(const HeadMask& mask, int key, int query) {
  static_assert(kN <= 8);
  const int lane = lane_index();
  uint32_t bits = 0;
  if (mask.aligned()) {
    const int place = lane / 4 % 4;
    const int own_key = key + lane / 16 * 4 + place / 2 * 8;
    const int own_query = query + lane % 4 * 2 + place % 2;
    uint32_t drawn = 0;
#pragma unroll 1
    for (int n = 0; n < kN; ++n) drawn |= mask.group(own_query + 8 * n, own_key) << 4 * n;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t theirs = __shfl_sync(kAllLanes, drawn, (lane & ~12) | i << 2);
      bits |= (theirs >> place & 0x11111111u) << i;
    }
    return bits;
  }
#pragma unroll 1
  for (int i = 0; i < 4 * kN; ++i) {
    const bool kept =
        mask.keeps(query + i / 4 * 8 + lane % 4 * 2 + i % 2, key + lane / 4 + i % 4 / 2 * 8);
    bits |= (kept ? 1u : 0u) << i;
  }
  return bits;
}

// Calls run.operator()<kD>() with the padded head size.
template <typename Run>
void with_padded_head(int64_t head_size, const Run& run) {
  LATHE_CHECK(head_size <= kLargestFlashHead);
  if (head_size <= 32) return run.template operator()<32>();
  if (head_size <= 64) return run.template operator()<64>();
  if (head_size <= 96) return run.template operator()<96>();
  return run.template operator()<128>();
}

}  // namespace lathe::cuda::attention
