// Causal self-attention, forward: out = softmax(q k^T scale, causal) v per head, with dropout on
// the probabilities; also the logarithm of each row's sum of exponentials.
//
// FlashAttention-2 (Dao, 2023) for bf16 on tensor cores. A block of threads owns 128 queries of one
// head (64 if the head size is above 64) and walks the tiles of 64 keys and values up to the
// diagonal, double-buffered by cp.async. Each warp owns 32 (16) queries. Their fragments and the
// sums of the result stay in registers; so do the probabilities, which pass from one product to the
// next as fragments. The softmax is computed online and in powers of two:
//   m' = max(m, s), out = out 2^(m - m') + 2^(s - m') v, sum = sum 2^(m - m') + 2^(s - m')
// where m may lag behind the true maximum by a factor of 2^8 in the result, which avoids nearly all
// rescaling. Masks are drawn while the scores are in registers, one Philox draw for four.
//
// Layout: qkv [B, T, 3, H, D], out [B, T, H, D], logsumexp [B, H, T]. Blocks of one head are
// consecutive, so that keys and values come from L2. The last queries, which see most keys, come
// first.
//
// Roofline: 2 T^2 D FLOPs per head (causal half of 4 T^2 D) against 8 T D bytes: T / 4 FLOPs a
// byte, compute-bound from T = 1200 on (H100). Besides the tensor cores, two things bind. Shared
// memory: for each tile a warp reads 256 D bytes and does 8192 D FLOPs (4096 D if it owns 16
// queries), half (all) of what an A100's SM can read while it multiplies. And 2^x: 16 per clock and
// SM.
//
// On Hopper, heads of 33 to 64 go to warpgroup_forward_kernel: four warps multiply 64 queries by a
// tile at once, and read queries, keys and values from shared memory. A warp owns two groups of 16
// queries, 64 apart; while the tensor cores multiply for one group, the threads compute the other's
// probabilities. Measured on an H200: tensor cores busy for 36 % of the time, instructions issued
// in 47 % of the cycles. The rest is waiting for products.
//
// fp32, and head sizes above 128, go to attention_plain.cu.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace attention {
namespace {

struct FlashForward {
  Sizes sizes;
  const Bf16* qkv;
  Bf16* out;
  float* logsumexp;
  DropoutMask mask;
  bool vectorized, has_wgmma;
};

template <int kD>
struct ForwardTiling {
  static constexpr int kM = kD <= 64 ? 2 : 1;  // 16-query groups per warp
  static constexpr int kQueries = kWarps * 16 * kM;
  static constexpr int kKeys = 64;
  static constexpr int kPart = 32;                  // keys whose scores a warp holds at once
  static constexpr int kBlocks = kD == 32 ? 3 : 2;  // per SM, as registers allow
  static constexpr int kTile = kKeys * kD;
  static constexpr size_t kSharedBytes = (kQueries + 4 * kKeys) * kD * sizeof(Bf16);
};

// A thread's state of its queries: rows lane / 4 and lane / 4 + 8 of each group of 16.
template <int kD, int kM>
struct QueryState {
  float out[kM][kD / 8][4] = {};
  float highest[kM][2], sum[kM][2] = {};  // sum: over the columns that this thread holds

  __device__ __forceinline__ QueryState() {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) highest[i / 2][i % 2] = -INFINITY;
  }
};

// Updates the highest scores from the tile's, and rescales the sums so far.
template <int kD, int kM, int kN>
__device__ __forceinline__ void update_highest(QueryState<kD, kM>& state,
                                               const float (&scores)[kM][kN][4], float scale) {
  constexpr float kLag = 8;  // in powers of two
  float correction[kM][2];
  bool rescale = false;
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int m = i / 2, half = i % 2;
    float tile = -INFINITY;
#pragma unroll
    for (int n = 0; n < kN; ++n)
      tile = fmaxf(tile, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
    tile = fmaxf(tile, __shfl_xor_sync(kAllLanes, tile, 1));
    tile = fmaxf(tile, __shfl_xor_sync(kAllLanes, tile, 2));
    float& highest = state.highest[m][half];
    const bool rises = (tile - highest) * scale > kLag;
    correction[m][half] = rises ? ptx::exp2((highest - tile) * scale) : 1.0f;
    if (rises) highest = tile;
    rescale |= rises;
  }
  if (!__any_sync(kAllLanes, rescale)) return;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    state.sum[m][0] *= correction[m][0], state.sum[m][1] *= correction[m][1];
#pragma unroll
    for (int i = 0; i < kD / 8 * 4; ++i) state.out[m][i / 4][i % 4] *= correction[m][i % 4 / 2];
  }
}

// Turns a warp's scores of 8 kN keys into probabilities, relative to the highest scores so far, and
// rounds them into the fragments of the next product.
template <bool kDropout, int kD, int kM, int kN>
__device__ __forceinline__ void to_probabilities(QueryState<kD, kM>& state,
                                                 float (&scores)[kM][kN][4],
                                                 uint32_t (&probabilities)[kM][kN / 2][4],
                                                 int query, int key, float scale,
                                                 const HeadMask& mask) {
  if (key + 8 * kN - 1 > query) hide<false>(scores, query - key, -INFINITY);
  update_highest(state, scores, scale);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const uint32_t kept = kDropout ? keep_bits_of_queries<kN>(mask, query + 16 * m, key) : 0;
#pragma unroll
    for (int i = 0; i < kN * 4; ++i) {
      const int half = i % 4 / 2;
      float& p = scores[m][i / 4][i % 4];
      p = ptx::exp2(fmaf(p, scale, -state.highest[m][half] * scale));
      state.sum[m][half] += p;
      if (kDropout && !(kept >> i & 1)) p = 0;
    }
    to_fragments(scores[m], probabilities[m]);
  }
}

// Processes the part of a tile of keys and values that starts at row `first`, for a warp's queries
// from `query` on.
template <int kD, int kM, bool kDropout>
__device__ __forceinline__ void attend(QueryState<kD, kM>& state,
                                       const LeftRows<kD, kM, true>& queries, const Bf16* keys,
                                       const Bf16* values, int first, int query, int key,
                                       float scale, const HeadMask& mask) {
  constexpr int kN = ForwardTiling<kD>::kPart / 8;
  float scores[kM][kN][4] = {};
  multiply_by_rows(scores, queries, keys, first);
  uint32_t probabilities[kM][kN / 2][4];
  to_probabilities<kDropout>(state, scores, probabilities, query, key, scale, mask);
  multiply_by_columns<kD>(state.out, probabilities, values, first);
}

// Normalises and writes a warp's queries, through the rows of `tile` from `first_row` on.
template <int kD, int kM>
__device__ __forceinline__ void finish(QueryState<kD, kM>& state, const FlashForward& args,
                                       Bf16* tile, int first_row, Bf16* out, float* logsumexp,
                                       int query, float scale, float keep_scale) {
  const Sizes& s = args.sizes;
  const int lane = lane_index();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[m][half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      factor[half] = keep_scale / sum;
      const int row = query + 16 * m + 8 * half + lane / 4;
      // The same product as in the exponentials.
      const float highest = state.highest[m][half] * scale;
      if (lane % 4 == 0 && row < s.T) logsumexp[row] = fmaf(highest, kLn2, logf(sum));
    }
    const int first = query + 16 * m;
    store_rows<kD>(state.out[m], factor[0], factor[1], tile, first_row + 16 * m, out + first * s.C,
                   static_cast<int>(s.C), static_cast<int>(s.T) - first, static_cast<int>(s.D),
                   args.vectorized);
  }
}

// What a block works on. It owns kQueries queries of one head, from `first` on.
template <int kD>
struct ForwardBlock {
  using Tiling = ForwardTiling<kD>;
  int T, first, tiles, head;
  GlobalRows rows;  // the head's queries; its keys and values are C and 2 C elements further
  Bf16 *queries, *tile_memory;
  Bf16* out;
  float* logsumexp;

  explicit __device__ __forceinline__ ForwardBlock(const FlashForward& args) {
    const Sizes& s = args.sizes;
    T = static_cast<int>(s.T);
    const int blocks = ceil_div(T, Tiling::kQueries), H = static_cast<int>(s.H);
    head = static_cast<int>(blockIdx.x) / blocks;
    const int b = head / H, h = head % H;
    first = (blocks - 1 - static_cast<int>(blockIdx.x) % blocks) * Tiling::kQueries;
    tiles = ceil_div(min(first + Tiling::kQueries, T), Tiling::kKeys);
    rows = {args.qkv + b * s.T * 3 * s.C + h * s.D, static_cast<int>(3 * s.C),
            static_cast<int>(s.D), args.vectorized};
    queries = reinterpret_cast<Bf16*>(ptx::shared_memory());
    tile_memory = queries + Tiling::kQueries * kD;
    out = args.out + b * s.T * s.C + h * s.D;
    logsumexp = args.logsumexp + head * s.T;
  }
  __device__ __forceinline__ Bf16* keys(int tile) const {
    return tile_memory + tile % 2 * 2 * Tiling::kTile;
  }
  __device__ __forceinline__ Bf16* values(int tile) const { return keys(tile) + Tiling::kTile; }

  // Start copies to shared memory.
  __device__ __forceinline__ void load_queries() const {
    load_tile<kD, Tiling::kQueries>(queries, rows.from(first), T - first);
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void load(int tile) const {
    GlobalRows from = rows.from(tile * Tiling::kKeys);
    const int count = T - tile * Tiling::kKeys, C = rows.stride / 3;
    from.data += C;
    load_tile<kD, Tiling::kKeys>(keys(tile), from, count);
    from.data += C;
    load_tile<kD, Tiling::kKeys>(values(tile), from, count);
    ptx::cp_async_commit();
  }
};

template <int kD, bool kDropout>
__global__ void __launch_bounds__(kThreads, ForwardTiling<kD>::kBlocks)
    flash_forward_kernel(FlashForward args) {
  using Tiling = ForwardTiling<kD>;
  constexpr int kM = Tiling::kM, kKeys = Tiling::kKeys;
  const ForwardBlock<kD> block(args);
  const int query = block.first + warp_index() * 16 * kM;  // the warp's first
  const HeadMask mask(args.mask, args.sizes, block.head);
  block.load_queries();
  block.load(0);
  ptx::cp_async_wait<1>();
  __syncthreads();
  const LeftRows<kD, kM, true> queries(block.queries, warp_index() * 16 * kM);

  QueryState<kD, kM> state;
  const float scale = args.sizes.scale * kLog2E;
#pragma unroll 1
  for (int tile = 0; tile < block.tiles; ++tile) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this tile has arrived, and the previous one is no longer read
    if (tile + 1 < block.tiles) block.load(tile + 1);
#pragma unroll 1
    for (int part = 0; part < kKeys; part += Tiling::kPart) {
      const int key = tile * kKeys + part;
      if (key >= query + 16 * kM) break;  // above the diagonal
      attend<kD, kM, kDropout>(state, queries, block.keys(tile), block.values(tile), part, query,
                               key, scale, mask);
    }
  }
  finish(state, args, block.queries, warp_index() * 16 * kM, block.out, block.logsumexp, query,
         scale, kDropout ? mask.scale() : 1.0f);
}

// A tile and all queries of a block, by wgmma.
template <bool kDropout>
__device__ __forceinline__ void attend_tile(QueryState<64, 1>& low, QueryState<64, 1>& high,
                                            const Bf16* queries, const Bf16* keys,
                                            const Bf16* values, int query, int key, float scale,
                                            const HeadMask& mask) {
  constexpr int kN = 8, kRows = 64;
  const ptx::MatrixDescriptor key_tile(keys), value_tile(values);
  float scores_low[1][kN][4], scores_high[1][kN][4];
  uint32_t p_low[1][kN / 2][4], p_high[1][kN / 2][4];
  ptx::warpgroup_arrive();
  wgmma_by_rows(scores_low[0], ptx::MatrixDescriptor(queries), key_tile);
  ptx::warpgroup_commit();
  wgmma_by_rows(scores_high[0], ptx::MatrixDescriptor(queries + kRows * 64), key_tile);
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<1>(scores_low[0]);
  to_probabilities<kDropout>(low, scores_low, p_low, query, key, scale, mask);
  ptx::warpgroup_arrive();
  wgmma_by_columns(low.out[0], p_low[0], value_tile);
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<1>(scores_high[0]);
  to_probabilities<kDropout>(high, scores_high, p_high, query + kRows, key, scale, mask);
  ptx::warpgroup_arrive();
  wgmma_by_columns(high.out[0], p_high[0], value_tile);
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<0>(low.out[0], high.out[0], p_low[0], p_high[0]);
}

// The same for the block's last tile, which the group `low` does not see.
template <bool kDropout>
__device__ __forceinline__ void attend_last_tile(QueryState<64, 1>& high, const Bf16* queries,
                                                 const Bf16* keys, const Bf16* values, int query,
                                                 int key, float scale, const HeadMask& mask) {
  constexpr int kN = 8, kRows = 64;
  float scores[1][kN][4];
  uint32_t probabilities[1][kN / 2][4];
  ptx::warpgroup_arrive();
  wgmma_by_rows(scores[0], ptx::MatrixDescriptor(queries + kRows * 64),
                ptx::MatrixDescriptor(keys));
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<0>(scores[0]);
  to_probabilities<kDropout>(high, scores, probabilities, query + kRows, key, scale, mask);
  ptx::warpgroup_arrive();
  wgmma_by_columns(high.out[0], probabilities[0], ptx::MatrixDescriptor(values));
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<0>(high.out[0], probabilities[0]);
}

// For heads of 33 to 64 on Hopper.
template <bool kDropout>
__global__ void __launch_bounds__(kThreads, kDropout ? 2 : 3)
    warpgroup_forward_kernel(FlashForward args) {
  constexpr int kD = 64, kRows = 64, kKeys = ForwardTiling<kD>::kKeys;
  static_assert(ForwardTiling<kD>::kQueries == 2 * kRows && kKeys == kRows);
  const ForwardBlock<kD> block(args);
  const int query = block.first + warp_index() * 16;
  const HeadMask mask(args.mask, args.sizes, block.head);
  block.load_queries();
  block.load(0);

  QueryState<kD, 1> low, high;
  const float scale = args.sizes.scale * kLog2E;
  const auto arrive = [&](int tile) {
    ptx::cp_async_wait<0>();
    ptx::fence_async_proxy();
    __syncthreads();  // this tile has arrived, and the previous one is no longer read
    if (tile + 1 < block.tiles) block.load(tile + 1);
  };
  const int seen = block.first / kKeys + 1;  // tiles that `low` sees
  int tile = 0;
#pragma unroll 1
  for (; tile < seen; ++tile) {
    arrive(tile);
    attend_tile<kDropout>(low, high, block.queries, block.keys(tile), block.values(tile), query,
                          tile * kKeys, scale, mask);
  }
  if (tile < block.tiles) {
    arrive(tile);
    attend_last_tile<kDropout>(high, block.queries, block.keys(tile), block.values(tile), query,
                               tile * kKeys, scale, mask);
  }
  const float keep_scale = kDropout ? mask.scale() : 1.0f;
  __syncthreads();  // products of other warps read the queries, whose memory `finish` reuses
  finish(low, args, block.queries, warp_index() * 16, block.out, block.logsumexp, query, scale,
         keep_scale);
  finish(high, args, block.queries, kRows + warp_index() * 16, block.out, block.logsumexp,
         query + kRows, scale, keep_scale);
}

template <int kD>
void flash_forward(const FlashForward& args, cudaStream_t stream) {
  using Tiling = ForwardTiling<kD>;
  const Sizes& s = args.sizes;
  LaunchShape shape;
  shape.grid.x = grid_of(s.B * s.H * ceil_div(s.T, Tiling::kQueries));
  shape.block.x = kThreads;
  shape.shared_bytes = Tiling::kSharedBytes;
  auto* kernel =
      args.mask.active ? flash_forward_kernel<kD, true> : flash_forward_kernel<kD, false>;
  if constexpr (kD == 64) {
    if (args.has_wgmma)
      kernel = args.mask.active ? warpgroup_forward_kernel<true> : warpgroup_forward_kernel<false>;
  }
  launch(kernel, shape, stream, args);
}

}  // namespace
}  // namespace attention

template <typename T>
void compute(const AttentionForward& args, const Context& context, const Tensor&) {
  using namespace attention;  // NOLINT: this function is the rest of that namespace
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, kernel_dtype<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.out_btc, kernel_dtype<T>, s.B * s.T, s.C, "out");
  check_vector(args.logsumexp_bht, DType::fp32, s.B * s.H * s.T, "logsumexp");
  const DropoutMask mask(args.dropout);
  const T* const qkv = data<T>(args.qkv_bt3c);
  T* const out = data<T>(args.out_btc);
  float* const logsumexp = data<float>(args.logsumexp_bht);
  if constexpr (sizeof(T) == 2) {
    if (s.D <= kLargestFlashHead) {
      const bool vectorized = vectorizes<T>(qkv, s.D) && vectorizes<T>(out, s.D);
      const FlashForward flash{s, qkv, out, logsumexp, mask, vectorized, context.has_wgmma};
      return with_padded_head(s.D, [&]<int kD>() { flash_forward<kD>(flash, context.stream); });
    }
  }
  const PlainForward<T> plain{.q = qkv,
                              .k = qkv + s.C,
                              .v = qkv + 2 * s.C,
                              .out = out,
                              .logsumexp = logsumexp,
                              .q_stride = 3 * s.C,
                              .kv_stride = 3 * s.C,
                              .out_stride = s.C,
                              .q_batch = s.T * 3 * s.C,
                              .kv_batch = s.T * 3 * s.C,
                              .out_batch = s.T * s.C,
                              .past = 0};
  plain_forward(plain, s, mask, context.stream);
}

LATHE_CUDA_OPERATION(AttentionForward)

}  // namespace lathe::cuda
