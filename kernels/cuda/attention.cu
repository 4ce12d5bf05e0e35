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
  bool vectorized;
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

// Processes the part of a tile of keys and values that starts at row `first`, for a warp's queries
// from `query` on.
template <int kD, int kM, bool kDropout>
__device__ __forceinline__ void attend(QueryState<kD, kM>& state,
                                       const LeftRows<kD, kM, true>& queries, const Bf16* keys,
                                       const Bf16* values, int first, int query, int key,
                                       float scale, const HeadMask& mask) {
  constexpr int kPart = ForwardTiling<kD>::kPart, kN = kPart / 8;
  float scores[kM][kN][4] = {};
  multiply_by_rows(scores, queries, keys, first);
  if (key + kPart - 1 > query) hide<false>(scores, query - key, -INFINITY);
  update_highest(state, scores, scale);
  uint32_t probabilities[kM][kN / 2][4];
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
  multiply_by_columns<kD>(state.out, probabilities, values, first);
}

// Normalises and writes a warp's queries.
template <int kD, int kM>
__device__ __forceinline__ void finish(QueryState<kD, kM>& state, const FlashForward& args,
                                       Bf16* tile, Bf16* out, float* logsumexp, int query,
                                       float scale, float keep_scale) {
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
    store_rows<kD>(state.out[m], factor[0], factor[1], tile, (warp_index() * kM + m) * 16,
                   out + first * s.C, static_cast<int>(s.C), static_cast<int>(s.T) - first,
                   static_cast<int>(s.D), args.vectorized);
  }
}

template <int kD, bool kDropout>
__global__ void __launch_bounds__(kThreads, ForwardTiling<kD>::kBlocks)
    flash_forward_kernel(FlashForward args) {
  using Tiling = ForwardTiling<kD>;
  constexpr int kM = Tiling::kM, kKeys = Tiling::kKeys;
  const Sizes& s = args.sizes;
  const int T = static_cast<int>(s.T);
  const int blocks = ceil_div(T, Tiling::kQueries);
  const int H = static_cast<int>(s.H), head = static_cast<int>(blockIdx.x) / blocks;
  const int b = head / H, h = head % H;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x) % blocks) * Tiling::kQueries;
  const int query = first + warp_index() * 16 * kM;  // the warp's first
  const HeadMask mask(args.mask, s, head);

  Bf16* const query_tile = reinterpret_cast<Bf16*>(ptx::shared_memory());
  Bf16* const tiles = query_tile + Tiling::kQueries * kD;  // keys, values; keys, values
  const GlobalRows rows{args.qkv + b * s.T * 3 * s.C + h * s.D, static_cast<int>(3 * s.C),
                        static_cast<int>(s.D), args.vectorized};
  const auto load = [&](int tile) {
    Bf16* const keys = tiles + tile % 2 * 2 * Tiling::kTile;
    GlobalRows from = rows.from(tile * kKeys);
    const int count = T - tile * kKeys;
    from.data += s.C;
    load_tile<kD, kKeys>(keys, from, count);
    from.data += s.C;
    load_tile<kD, kKeys>(keys + Tiling::kTile, from, count);
    ptx::cp_async_commit();
  };
  load_tile<kD, Tiling::kQueries>(query_tile, rows.from(first), T - first);
  ptx::cp_async_commit();
  load(0);
  ptx::cp_async_wait<1>();
  __syncthreads();
  const LeftRows<kD, kM, true> queries(query_tile, warp_index() * 16 * kM);

  QueryState<kD, kM> state;
  const float scale = s.scale * kLog2E;
  const int last = first + Tiling::kQueries < T ? first + Tiling::kQueries : T;
  const int count = ceil_div(last, kKeys);
#pragma unroll 1
  for (int tile = 0; tile < count; ++tile) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this tile has arrived, and the previous one is no longer read
    if (tile + 1 < count) load(tile + 1);
    const Bf16* const keys = tiles + tile % 2 * 2 * Tiling::kTile;
#pragma unroll 1
    for (int part = 0; part < kKeys; part += Tiling::kPart) {
      const int key = tile * kKeys + part;
      if (key >= query + 16 * kM) break;  // above the diagonal
      attend<kD, kM, kDropout>(state, queries, keys, keys + Tiling::kTile, part, query, key, scale,
                               mask);
    }
  }
  finish(state, args, query_tile, args.out + b * s.T * s.C + h * s.D, args.logsumexp + head * s.T,
         query, scale, kDropout ? mask.scale() : 1.0f);
}

template <int kD>
void flash_forward(const FlashForward& args, cudaStream_t stream) {
  using Tiling = ForwardTiling<kD>;
  const Sizes& s = args.sizes;
  LaunchShape shape;
  shape.grid.x = grid_of(s.B * s.H * ceil_div(s.T, Tiling::kQueries));
  shape.block.x = kThreads;
  shape.shared_bytes = Tiling::kSharedBytes;
  const auto kernel =
      args.mask.active ? flash_forward_kernel<kD, true> : flash_forward_kernel<kD, false>;
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
      const FlashForward flash{s, qkv, out, logsumexp, mask, vectorized};
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
