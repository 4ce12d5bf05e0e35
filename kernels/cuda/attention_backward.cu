// Causal self-attention, backward. With P = exp(scale q k^T - logsumexp), keep = 0 or 1 / (1 - p):
//   dv = (P keep)^T dout              dP = (dout v^T) keep      delta = rowsum(dout out)
//   dS = P (dP - delta)               dq = scale dS k           dk = scale dS^T q
// All of it is recomputed from qkv and logsumexp; delta is the sum over keys of dP P.
//
// Three kernels. No sum is shared by two blocks, so there are no atomics and the order of every sum
// is fixed: (1) statistics of the queries: delta, and logsumexp in powers of two; (2) dk and dv,
// blocks of 64 keys that each meet the tiles of queries from the diagonal on; (3) dq, blocks of 64
// queries that each meet the tiles of keys up to the diagonal. (2) and (3) are one template because
// they are mirror images: rows (x, y) = (k, v) meet tiles (u, w) = (q, dout), or rows (q, dout)
// meet tiles (k, v); S = x u^T, dP = y w^T, then dx += dS u and dy += P w (dv only).
// This takes seven products; a kernel that adds up dq by atomics takes five, but its result does
// not repeat.
//
// As in attention.cu, each warp owns 16 rows, P and dS pass from product to product in registers,
// and tiles are double-buffered by cp.async. A warp holds 16 x 32 of P and dP at a time (16 x 16
// for the largest heads). Above head size 64, x and y are read from shared memory repeatedly,
// because the sums need the registers.
//
// On Hopper, heads of 33 to 64 take warpgroup_backward_kernel for (2) and (3): four warps multiply
// their 64 rows by a whole tile with wgmma, x and y from shared memory. While the tensor cores
// compute dP, the threads compute P, and while they compute dy, dS. Measured on an H200: tensor
// cores busy for 45 % of the time, instructions issued in half of the cycles.
//
// Roofline: 7 T^2 D FLOPs per head (causal half) against 16 T D bytes: compute-bound. Each mma of
// the three products on 16 rows reads 256 bytes of shared memory, which on an A100 takes just as
// long as the mma: both bind. Statistics: 4 B T C bytes read, bandwidth.
//
// If the caller wants the column sums of dqkv, a block of (2) or (3) sums the columns of the rows
// that it has just stored, which are still in shared memory. Its sums go to the workspace, [B,
// blocks of rows, 3 C], and a fourth kernel adds them in a fixed order.
//
// fp32 and head sizes above 128 go to attention_plain.cu after the statistics; their column sums
// are computed from the finished dqkv.
#include <algorithm>

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace attention {
namespace {

// ---- Statistics.

constexpr int kStatisticsThreads = 256;

// `lanes` (a power of two, up to 32) threads per query; consecutive groups take consecutive
// queries.
template <typename T, int kWidth>
__global__ void statistics_kernel(RowStatistics* statistics, const T* dout, const T* out,
                                  const float* logsumexp, float factor, Sizes s, int lanes) {
  const int64_t padded = padded_rows(s.T), per_block = kStatisticsThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t i = blockIdx.x * per_block + static_cast<int>(threadIdx.x) / lanes;
  const int64_t head = i / padded, t = i % padded;
  const bool real = head < s.B * s.H && t < s.T;
  float delta = 0;
  if (real) {
    const int64_t at = (head / s.H * s.T + t) * s.C + head % s.H * s.D;
    for (int64_t c = lane * kWidth; c < s.D; c += lanes * kWidth) {
      const auto a = Vec<T, kWidth>::load(dout + at + c), b = Vec<T, kWidth>::load(out + at + c);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) delta += to_float(a.at[e]) * to_float(b.at[e]);
    }
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    delta += __shfl_xor_sync(kAllLanes, delta, offset);
  if (lane == 0 && head < s.B * s.H)
    statistics[i] = {real ? logsumexp[head * s.T + t] * factor : INFINITY, delta};
}

template <typename T, int kWidth>
void compute_statistics(const AttentionBackward& args, const Sizes& s, RowStatistics* statistics,
                        float factor, cudaStream_t stream) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kWidth < s.D) lanes *= 2;
  LaunchShape shape;
  shape.grid.x = grid_of(ceil_div(s.B * s.H * padded_rows(s.T) * lanes, kStatisticsThreads));
  shape.block.x = kStatisticsThreads;
  launch(statistics_kernel<T, kWidth>, shape, stream, statistics, data<T>(args.dout_btc),
         data<T>(args.out_btc), data<float>(args.logsumexp_bht), factor, s, lanes);
}

// ---- The gradients.

struct FlashBackward {
  Sizes sizes;
  const Bf16 *qkv, *dout;
  const RowStatistics* statistics;  // logsumexp times log2 e
  Bf16* dqkv;
  float* partials;  // of the column sums of dqkv, [B, blocks, 3 C], or null
  DropoutMask mask;
  bool vectorized, has_wgmma;
};
inline constexpr int kBackwardRows = kWarps * 16;  // per block

template <int kD>
struct BackwardTiling {
  static constexpr int kRows = kBackwardRows;
  static constexpr int kTileRows = kD <= 64 ? 64 : 32;
  static constexpr int kPart = kD <= 96 ? 32 : 16;  // rows of a tile that a warp meets at once
  static constexpr int kTile = kTileRows * kD;
  static constexpr bool kKept = kD <= 64;  // x and y stay in registers
  // Blocks per SM, as registers allow.
  static constexpr int blocks(bool of_keys) { return kD <= 64 && !of_keys ? 3 : 2; }
  static constexpr size_t kStatisticsBytes = 2 * kTileRows * sizeof(RowStatistics);
  static constexpr size_t kSharedBytes =
      (2 * kRows + 4 * kTileRows) * kD * sizeof(Bf16) + kStatisticsBytes;
};

// The block's shared memory: its rows, and two stages of tiles.
template <int kD>
struct BackwardShared {
  using Tiling = BackwardTiling<kD>;
  Bf16 *x, *y, *tiles;
  RowStatistics* statistics;

  __device__ __forceinline__ BackwardShared() {
    x = reinterpret_cast<Bf16*>(ptx::shared_memory());
    y = x + Tiling::kRows * kD;
    tiles = y + Tiling::kRows * kD;
    statistics = reinterpret_cast<RowStatistics*>(tiles + 4 * Tiling::kTile);
  }
  __device__ __forceinline__ Bf16* u(int tile) const {
    return tiles + tile % 2 * 2 * Tiling::kTile;
  }
  __device__ __forceinline__ Bf16* w(int tile) const { return u(tile) + Tiling::kTile; }
  __device__ __forceinline__ RowStatistics* statistics_of(int tile) const {
    return statistics + tile % 2 * Tiling::kTileRows;
  }
};

// A warp's sums: for dk and dv, or for dq alone.
template <int kD, bool kOfKeys>
struct Gradients {
  float dx[1][kD / 8][4] = {};
  float dy[1][kOfKeys ? kD / 8 : 1][4] = {};
};

// The statistics of the queries of a thread's sums: if rows are queries, those of rows lane / 4 and
// lane / 4 + 8, in registers; if columns are, those of the tile, in shared memory.
template <bool kOfKeys>
struct QueryStatistics {
  RowStatistics of_row[2];
  const RowStatistics* of_column;

  // Those of sums[n][0] to sums[n][3].
  __device__ __forceinline__ void of(int n, RowStatistics (&queries)[4]) const {
    Vec<RowStatistics, 2> columns;
    if constexpr (kOfKeys) columns = columns.load(of_column + 8 * n + lane_index() % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) queries[i] = kOfKeys ? columns.at[i % 2] : of_row[i / 2];
  }
};

// Turns scores into P.
template <bool kOfKeys, int kN>
__device__ __forceinline__ void to_probabilities(float (&p)[kN][4],
                                                 const QueryStatistics<kOfKeys>& statistics,
                                                 float scale) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    RowStatistics queries[4];
    statistics.of(n, queries);
#pragma unroll
    for (int i = 0; i < 4; ++i) p[n][i] = ptx::exp2(fmaf(p[n][i], scale, -queries[i].logsumexp));
  }
}

// Turns dP into dS. Bit 4 n + i of `kept` is that of element [n][i].
template <bool kOfKeys, bool kDropout, int kN>
__device__ __forceinline__ void to_score_gradients(float (&ds)[kN][4], const float (&p)[kN][4],
                                                   const QueryStatistics<kOfKeys>& statistics,
                                                   uint32_t kept, float keep_scale) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    RowStatistics queries[4];
    statistics.of(n, queries);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float dp = ds[n][i];
      if constexpr (kDropout) dp = kept >> (4 * n + i) & 1 ? dp * keep_scale : 0.0f;
      ds[n][i] = p[n][i] * (dp - queries[i].delta);
    }
  }
}

// P with what is not kept replaced by zeros.
template <bool kDropout, int kN>
__device__ __forceinline__ void to_kept_fragments(const float (&p)[kN][4], uint32_t kept,
                                                  uint32_t (&fragments)[kN / 2][4]) {
  float values[kN][4];
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i)
    values[i / 4][i % 4] = !kDropout || kept >> i & 1 ? p[i / 4][i % 4] : 0.0f;
  to_fragments(values, fragments);
}

// The warp's rows from `row` on meet a part of a tile, from its row `first` on, which is at
// position `column`.
template <int kD, bool kOfKeys, bool kDropout, bool kKept>
__device__ __forceinline__ void meet(Gradients<kD, kOfKeys>& sums, const LeftRows<kD, 1, kKept>& x,
                                     const LeftRows<kD, 1, kKept>& y, const Bf16* u, const Bf16* w,
                                     int first, int row, int column,
                                     const QueryStatistics<kOfKeys>& statistics, float scale,
                                     const HeadMask& mask) {
  constexpr int kPart = BackwardTiling<kD>::kPart, kN = kPart / 8;
  uint32_t kept = 0;
  // Registers are scarce here, so draw before there are scores to hold as well.
  if constexpr (kDropout && kOfKeys) kept = keep_bits_of_keys<kN>(mask, row, column);
  float p[1][kN][4] = {}, ds[1][kN][4] = {};
  multiply_by_rows(p, x, u, first);
  multiply_by_rows(ds, y, w, first);
  const bool diagonal = kOfKeys ? row + 15 > column : column + kPart - 1 > row;
  if (diagonal) {
    hide<kOfKeys>(p, row - column, -INFINITY);
    hide<kOfKeys>(ds, row - column, 0.0f);  // it is multiplied by a probability of 0
  }
  if constexpr (kDropout && !kOfKeys) kept = keep_bits_of_queries<kN>(mask, row, column);
  to_probabilities(p[0], statistics, scale);
  to_score_gradients<kOfKeys, kDropout>(ds[0], p[0], statistics, kept, mask.scale());
  uint32_t fragments[1][kN / 2][4];
  if constexpr (kOfKeys) {
    to_kept_fragments<kDropout>(p[0], kept, fragments[0]);
    multiply_by_columns<kD>(sums.dy, fragments, w, first);
  }
  to_fragments(ds[0], fragments[0]);
  multiply_by_columns<kD>(sums.dx, fragments, u, first);
}

// The same with a whole tile, by wgmma. The tensor cores compute dP while the threads compute P,
// and dy while they compute dS.
template <bool kOfKeys, bool kDropout>
__device__ __forceinline__ void meet_tile(
    Gradients<64, kOfKeys>& sums, const ptx::MatrixDescriptor& x, const ptx::MatrixDescriptor& y,
    const ptx::MatrixDescriptor& u, const ptx::MatrixDescriptor& w, int row, int column,
    const QueryStatistics<kOfKeys>& statistics, float scale, const HeadMask& mask) {
  constexpr int kN = 8;
  uint32_t kept = 0;
  if constexpr (kDropout && kOfKeys) kept = keep_bits_of_keys<kN>(mask, row, column);
  float p[1][kN][4], ds[1][kN][4];
  ptx::warpgroup_arrive();
  wgmma_by_rows(p[0], x, u);
  ptx::warpgroup_commit();
  wgmma_by_rows(ds[0], y, w);
  ptx::warpgroup_commit();
  if constexpr (kDropout && !kOfKeys) kept = keep_bits_of_queries<kN>(mask, row, column);
  ptx::warpgroup_wait<1>(p[0]);
  const bool diagonal = kOfKeys ? row + 15 > column : column + 63 > row;
  if (diagonal) hide<kOfKeys>(p, row - column, -INFINITY);
  to_probabilities(p[0], statistics, scale);
  uint32_t kept_p[kOfKeys ? kN / 2 : 1][4], fragments[kN / 2][4];
  if constexpr (kOfKeys) {
    to_kept_fragments<kDropout>(p[0], kept, kept_p);
    ptx::warpgroup_arrive();
    wgmma_by_columns(sums.dy[0], kept_p, w);
    ptx::warpgroup_commit();
  }
  ptx::warpgroup_wait<kOfKeys ? 1 : 0>(ds[0]);
  if (diagonal) hide<kOfKeys>(ds, row - column, 0.0f);  // multiplied by a probability of 0
  to_score_gradients<kOfKeys, kDropout>(ds[0], p[0], statistics, kept, mask.scale());
  to_fragments(ds[0], fragments);
  ptx::warpgroup_arrive();
  wgmma_by_columns(sums.dx[0], fragments, u);
  ptx::warpgroup_commit();
  if constexpr (kOfKeys) {
    ptx::warpgroup_wait<0>(sums.dy[0], sums.dx[0], kept_p, fragments);
  } else {
    ptx::warpgroup_wait<0>(sums.dx[0], fragments);
  }
}

// Which rows of which head a block owns.
template <bool kOfKeys>
struct BlockPlace {
  int blocks, head, b, h, first;  // blocks: per head; first: the first row

  __device__ __forceinline__ BlockPlace(int T, int H, unsigned block)
      : blocks(ceil_div(T, kBackwardRows)) {
    const int place = static_cast<int>(block) % blocks;
    head = static_cast<int>(block) / blocks, b = head / H, h = head % H;
    first = (kOfKeys ? place : blocks - 1 - place) * kBackwardRows;  // longest first
  }
};

// Sums the columns of the rows that a block has stored and still has in shared memory.
template <int kD, bool kOfKeys>
__device__ __forceinline__ void sum_gradients(float* partials, int T, int H, int D) {
  const BlockPlace<kOfKeys> place(T, H, ptx::block_index());
  const BackwardShared<kD> shared;
  const int C = H * D, own = warp_index() * 16, count = T - place.first - own;
  sum_stored_rows<kD>(shared.x, own, count);
  if constexpr (kOfKeys) sum_stored_rows<kD>(shared.y, own, count);
  __syncthreads();
  const int64_t part = int64_t{place.b} * place.blocks + place.first / kBackwardRows;
  partials += part * 3 * C + place.h * D;
  add_up_warps<kD>(shared.x, D, partials + (kOfKeys ? C : 0));
  if constexpr (kOfKeys) add_up_warps<kD>(shared.y, D, partials + 2 * C);
}

// Not inlined, because the caller uses all registers: nvcc 13.0 would spill some.
template <int kD>
[[gnu::noinline]] __device__ void sum_gradients_of_keys(float* partials, int T, int H, int D) {
  sum_gradients<kD, true>(partials, T, H, D);
}

// The end of a block: stores its rows of dqkv, and the sums of their columns. Recomputes which rows
// they are, to save registers in the code before.
template <int kD, bool kOfKeys>
__device__ __forceinline__ void store_gradients(const FlashBackward& args,
                                                const BackwardShared<kD>& shared,
                                                const Gradients<kD, kOfKeys>& sums,
                                                float keep_scale) {
  const Sizes& s = args.sizes;
  const int T = static_cast<int>(s.T), H = static_cast<int>(s.H), D = static_cast<int>(s.D);
  const BlockPlace<kOfKeys> place(T, H, ptx::block_index());
  const int C = H * D, stride = 3 * C;
  const int own = warp_index() * 16, row = place.first + own, count = T - row;
  Bf16* const to = args.dqkv + (place.b * s.T + row) * stride + place.h * D;
  store_rows<kD>(sums.dx[0], s.scale, s.scale, shared.x, own, to + (kOfKeys ? C : 0), stride, count,
                 D, args.vectorized);
  if constexpr (kOfKeys) {
    store_rows<kD>(sums.dy[0], keep_scale, keep_scale, shared.y, own, to + 2 * C, stride, count, D,
                   args.vectorized);
  }
  if (args.partials == nullptr) return;
  if constexpr (kOfKeys) {
    sum_gradients_of_keys<kD>(args.partials, T, H, D);
  } else {
    sum_gradients<kD, false>(args.partials, T, H, D);
  }
}

// Starts to copy a tile of what a block's rows meet: queries with their dout and statistics, or
// keys with their values.
template <int kD, bool kOfKeys>
__device__ __forceinline__ void load_met(const BackwardShared<kD>& shared, const GlobalRows& u,
                                         const GlobalRows& w, const RowStatistics* statistics,
                                         int tile, int T) {
  constexpr int kTileRows = BackwardTiling<kD>::kTileRows;
  const int at = tile * kTileRows;
  load_tile<kD, kTileRows>(shared.u(tile), u.from(at), T - at);
  load_tile<kD, kTileRows>(shared.w(tile), w.from(at), T - at);
  constexpr int kPerCopy = 16 / sizeof(RowStatistics);
  const int thread = static_cast<int>(threadIdx.x) * kPerCopy;
  if (kOfKeys && thread < kTileRows)
    ptx::cp_async_16(shared.statistics_of(tile) + thread, statistics + at + thread);
  ptx::cp_async_commit();
}

// What a block of either kernel works on, in global memory.
template <int kD, bool kOfKeys>
struct BackwardBlock {
  int T, begin, end, head;  // tiles [begin, end)
  int first;                // the block's first row
  GlobalRows x, y, u, w;
  const RowStatistics* statistics;  // of the head's queries

  explicit __device__ __forceinline__ BackwardBlock(const FlashBackward& args) {
    constexpr int kTileRows = BackwardTiling<kD>::kTileRows;
    const Sizes& s = args.sizes;
    const int D = static_cast<int>(s.D), C = static_cast<int>(s.C);
    T = static_cast<int>(s.T);
    const BlockPlace<kOfKeys> place(T, static_cast<int>(s.H), blockIdx.x);
    head = place.head, first = place.first;
    const GlobalRows q{args.qkv + static_cast<int64_t>(place.b) * T * 3 * C + place.h * D, 3 * C, D,
                       args.vectorized};
    const GlobalRows k{q.data + C, 3 * C, D, args.vectorized};
    const GlobalRows v{k.data + C, 3 * C, D, args.vectorized};
    const GlobalRows dout{args.dout + static_cast<int64_t>(place.b) * T * C + place.h * D, C, D,
                          args.vectorized};
    x = kOfKeys ? k : q, y = kOfKeys ? v : dout;
    u = kOfKeys ? q : k, w = kOfKeys ? dout : v;
    statistics = args.statistics + head * padded_rows(T);
    begin = kOfKeys ? first / kTileRows : 0;
    end = ceil_div(kOfKeys ? T : min(first + kBackwardRows, T), kTileRows);
  }
  __device__ __forceinline__ void load_rows(const BackwardShared<kD>& shared) const {
    load_tile<kD, kBackwardRows>(shared.x, x.from(first), T - first);
    load_tile<kD, kBackwardRows>(shared.y, y.from(first), T - first);
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void load_met(const BackwardShared<kD>& shared, int tile) const {
    attention::load_met<kD, kOfKeys>(shared, u, w, statistics, tile, T);
  }
  __device__ __forceinline__ QueryStatistics<kOfKeys> row_statistics(int row) const {
    QueryStatistics<kOfKeys> found{};
    if constexpr (!kOfKeys) {
      found.of_row[0] = statistics[row + lane_index() / 4];
      found.of_row[1] = statistics[row + lane_index() / 4 + 8];
    }
    return found;
  }
};

template <int kD, bool kOfKeys, bool kDropout>
__global__ void __launch_bounds__(kThreads, BackwardTiling<kD>::blocks(kOfKeys))
    flash_backward_kernel(FlashBackward args) {
  using Tiling = BackwardTiling<kD>;
  const BackwardBlock<kD, kOfKeys> block(args);
  const int row = block.first + warp_index() * 16;  // the warp's first
  const HeadMask mask(args.mask, args.sizes, block.head);
  const BackwardShared<kD> shared;
  block.load_rows(shared);
  block.load_met(shared, block.begin);
  ptx::cp_async_wait<1>();
  __syncthreads();
  const LeftRows<kD, 1, Tiling::kKept> x(shared.x, warp_index() * 16),
      y(shared.y, warp_index() * 16);
  QueryStatistics<kOfKeys> statistics = block.row_statistics(row);

  Gradients<kD, kOfKeys> sums;
#pragma unroll 1
  for (int tile = block.begin; tile < block.end; ++tile) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this tile has arrived, and the previous one is no longer read
    if (tile + 1 < block.end) block.load_met(shared, tile + 1);
#pragma unroll 1
    for (int part = 0; part < Tiling::kTileRows; part += Tiling::kPart) {
      const int column = tile * Tiling::kTileRows + part;
      const bool hidden = kOfKeys ? column + Tiling::kPart <= row : column >= row + 16;
      if (hidden) continue;
      statistics.of_column = shared.statistics_of(tile) + part;
      meet<kD, kOfKeys, kDropout>(sums, x, y, shared.u(tile), shared.w(tile), part, row, column,
                                  statistics, args.sizes.scale * kLog2E, mask);
    }
  }

  store_gradients<kD, kOfKeys>(args, shared, sums, kDropout ? args.mask.scale : 1.0f);
}

// Blocks per SM of warpgroup_backward_kernel, as registers allow.
constexpr int warpgroup_blocks(bool of_keys, bool dropout) {
  return (of_keys ? 3 : 4) - (dropout ? 1 : 0);
}

// The same with wgmma, for heads of 33 to 64 on Hopper.
template <bool kOfKeys, bool kDropout>
__global__ void __launch_bounds__(kThreads, warpgroup_blocks(kOfKeys, kDropout))
    warpgroup_backward_kernel(FlashBackward args) {
  constexpr int kD = 64;
  const BackwardBlock<kD, kOfKeys> block(args);
  const int row = block.first + warp_index() * 16;  // the warp's first
  const HeadMask mask(args.mask, args.sizes, block.head);
  const BackwardShared<kD> shared;
  block.load_rows(shared);
  block.load_met(shared, block.begin);
  const ptx::MatrixDescriptor x(shared.x), y(shared.y);
  QueryStatistics<kOfKeys> statistics = block.row_statistics(row);

  Gradients<kD, kOfKeys> sums;
#pragma unroll 1
  for (int tile = block.begin; tile < block.end; ++tile) {
    ptx::cp_async_wait<0>();
    ptx::fence_async_proxy();
    __syncthreads();  // this tile has arrived, and the previous one is no longer read
    if (tile + 1 < block.end) block.load_met(shared, tile + 1);
    statistics.of_column = shared.statistics_of(tile);
    meet_tile<kOfKeys, kDropout>(
        sums, x, y, ptx::MatrixDescriptor(shared.u(tile)), ptx::MatrixDescriptor(shared.w(tile)),
        row, tile * BackwardTiling<kD>::kTileRows, statistics, args.sizes.scale * kLog2E, mask);
  }

  __syncthreads();  // products of other warps read the rows that store_gradients reuses
  store_gradients<kD, kOfKeys>(args, shared, sums, kDropout ? args.mask.scale : 1.0f);
}

template <int kD, bool kDropout>
void flash_backward(const FlashBackward& args, cudaStream_t stream) {
  using Tiling = BackwardTiling<kD>;
  const Sizes& s = args.sizes;
  LaunchShape shape;
  shape.grid.x = grid_of(s.B * s.H * ceil_div(s.T, Tiling::kRows));
  shape.block.x = kThreads;
  shape.shared_bytes = Tiling::kSharedBytes;
  if constexpr (kD == 64) {
    if (args.has_wgmma) {
      launch(warpgroup_backward_kernel<true, kDropout>, shape, stream, args);
      launch(warpgroup_backward_kernel<false, kDropout>, shape, stream, args);
      return;
    }
  }
  launch(flash_backward_kernel<kD, true, kDropout>, shape, stream, args);
  launch(flash_backward_kernel<kD, false, kDropout>, shape, stream, args);
}

size_t statistics_bytes(const Sizes& s) {
  return static_cast<size_t>(s.B * s.H * padded_rows(s.T)) * sizeof(RowStatistics);
}

template <typename T>
bool is_flash(const Sizes& s) {
  return sizeof(T) == 2 && s.D <= kLargestFlashHead;
}

// Rows of partial column sums of the flash kernels.
int64_t partial_rows(const Sizes& s) {
  return s.B * ceil_div(s.T, kBackwardRows);
}

}  // namespace
}  // namespace attention

template <typename T>
size_t workspace_of(const AttentionBackward& args, const Context&) {
  const attention::Sizes s(args.qkv_bt3c, args.n_head);
  const size_t statistics = attention::statistics_bytes(s);
  if (!is_planned(args.dqkv_sums_3c)) return statistics;
  if (!attention::is_flash<T>(s))
    return std::max(statistics, column_sums_workspace(s.B * s.T, 3 * s.C));
  return statistics + static_cast<size_t>(attention::partial_rows(s) * 3 * s.C) * sizeof(float);
}

template <typename T>
void compute(const AttentionBackward& args, const Context& context, const Tensor& workspace) {
  using namespace attention;  // NOLINT: this function is the rest of that namespace
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, kernel_dtype<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.dqkv_bt3c, kernel_dtype<T>, s.B * s.T, 3 * s.C, "dqkv");
  check_matrix(args.out_btc, kernel_dtype<T>, s.B * s.T, s.C, "out");
  check_matrix(args.dout_btc, kernel_dtype<T>, s.B * s.T, s.C, "dout");
  check_vector(args.logsumexp_bht, DType::fp32, s.B * s.H * s.T, "logsumexp");
  if (args.dqkv_sums_3c) check_vector(args.dqkv_sums_3c, DType::fp32, 3 * s.C, "dqkv_sums");
  const DropoutMask mask(args.dropout);
  check_workspace(workspace, workspace_of<T>(args, context));
  auto* const statistics = static_cast<RowStatistics*>(workspace.data);
  LATHE_CHECK(reinterpret_cast<uintptr_t>(statistics) % 16 == 0, "workspace is not aligned");
  const T *const qkv = data<T>(args.qkv_bt3c), *const dout = data<T>(args.dout_btc);
  T* const dqkv = data<T>(args.dqkv_bt3c);
  auto* const sums = data<float>(args.dqkv_sums_3c);

  const bool flash = is_flash<T>(s);
  const float factor = flash ? kLog2E : 1.0f;
  const bool vectorized = vectorizes<T>(dout, s.D) && vectorizes<T>(data<T>(args.out_btc), s.D);
  if (vectorized) {
    compute_statistics<T, kVec<T>>(args, s, statistics, factor, context.stream);
  } else {
    compute_statistics<T, 1>(args, s, statistics, factor, context.stream);
  }
  if constexpr (sizeof(T) == 2) {
    if (flash) {
      const bool all = vectorized && vectorizes<T>(qkv, s.D) && vectorizes<T>(dqkv, s.D);
      auto* const partials = reinterpret_cast<float*>(statistics + s.B * s.H * padded_rows(s.T));
      const FlashBackward flash_args{
          s, qkv, dout, statistics, dqkv, sums ? partials : nullptr, mask, all, context.has_wgmma};
      with_padded_head(s.D, [&]<int kD>() {
        mask.active ? flash_backward<kD, true>(flash_args, context.stream)
                    : flash_backward<kD, false>(flash_args, context.stream);
      });
      if (sums)
        add_partials({sums}, partials, partial_rows(s), 3 * s.C, args.accumulate, context.stream);
      return;
    }
  }
  plain_backward(PlainBackward<T>{qkv, dout, statistics, dqkv}, s, mask, context.stream);
  if (sums)  // the statistics are no longer needed
    column_sums(sums, dqkv, kernel_dtype<T>, s.B * s.T, 3 * s.C, args.accumulate, workspace,
                context.stream);
}

LATHE_CUDA_OPERATION(AttentionBackward)

}  // namespace lathe::cuda
