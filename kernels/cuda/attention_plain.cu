// Attention without tensor cores: fp32, head sizes above 128, and sampling with a KV cache. The
// maths is that of attention.cu and attention_backward.cu.
//
// A block owns kRows consecutive queries of one head (keys, for dk and dv). Its four warps divide
// what these rows meet: warp w takes keys w, w + 4, ... The 32 lanes of a warp hold 32 columns of
// the head side by side, so that reads are contiguous and a score is a sum over the warp. Each warp
// keeps sums of its own, with a softmax of its own; at the end they are merged in the order of the
// warps.
//
// Roofline: bound by sums over a warp (5 shuffles per score), then by L2, from which each key is
// read once per kRows queries. fp32 need not be fast. Sampling, whose kRows is 1, reads the whole
// cache once per new token and head.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace attention {
namespace {

constexpr int kPlainWarps = 4, kPlainThreads = kPlainWarps * kWarp;
constexpr int kPlainRows = 4;                        // rows per block in training
constexpr int kColumns = kLargestPlainHead / kWarp;  // columns per lane, at most

// A vector of D elements over the lanes of a warp: lane l has elements l, l + 32, ...
struct LaneColumns {
  float at[kColumns] = {};
};

template <typename T>
__device__ __forceinline__ LaneColumns load_columns(const T* from, int D) {
  LaneColumns columns;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int c = j * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    if (c < D) columns.at[j] = to_float(from[c]);
  }
  return columns;
}

__device__ __forceinline__ float dot(const LaneColumns& a, const LaneColumns& b, int D) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (j * kWarp < D) sum += a.at[j] * b.at[j];
  return warp_reduce(sum, Sum());
}

// sums = sums correction + factor x.
__device__ __forceinline__ void add(LaneColumns& sums, float correction, float factor,
                                    const LaneColumns& x, int D) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (j * kWarp < D) sums.at[j] = sums.at[j] * correction + factor * x.at[j];
}

// Writes each warp's columns to all[warp]. A barrier must follow before they are read.
__device__ __forceinline__ void publish(const LaneColumns& columns, float* all, int D) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int c = j * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    if (c < D) all[static_cast<int>(threadIdx.x) / kWarp * D + c] = columns.at[j];
  }
}

// The softmax of a query over the keys that a warp has processed so far, and the sum of their
// values.
struct WarpSoftmax {
  float highest = -INFINITY, sum = 0;  // the highest score; the sum of exp(score - highest)
  LaneColumns out;
};

// Adds one more key; if it is not kept, dropout has removed its value.
__device__ __forceinline__ void take_key(WarpSoftmax& softmax, float score, bool kept,
                                         const LaneColumns& value, int D) {
  const float higher = fmaxf(softmax.highest, score);
  const float correction = expf(softmax.highest - higher), p = expf(score - higher);
  softmax.highest = higher;
  softmax.sum = softmax.sum * correction + p;
  add(softmax.out, correction, kept ? p : 0.0f, value, D);
}

// Merges the warps' softmaxes in their order and writes the sum of values, times a factor, as a row
// of D. Returns the logsumexp of all scores.
template <typename T>
__device__ __forceinline__ float write_softmax(const WarpSoftmax& softmax, float* all, int D,
                                               float factor, T* to) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float *const all_highest = all, *const all_sums = all_highest + kPlainWarps;
  float* const all_out = all_sums + kPlainWarps;
  if (threadIdx.x % kWarp == 0) all_highest[warp] = softmax.highest, all_sums[warp] = softmax.sum;
  publish(softmax.out, all_out, D);
  __syncthreads();
  float top = all_highest[0], total = 0, weight[kPlainWarps];
#pragma unroll
  for (int w = 1; w < kPlainWarps; ++w) top = fmaxf(top, all_highest[w]);
#pragma unroll
  for (int w = 0; w < kPlainWarps; ++w) {
    weight[w] = expf(all_highest[w] - top);
    total += all_sums[w] * weight[w];
  }
  factor /= total;
  for (int c = static_cast<int>(threadIdx.x); c < D; c += kPlainThreads) {
    float x = 0;
#pragma unroll
    for (int w = 0; w < kPlainWarps; ++w) x += all_out[w * D + c] * weight[w];
    to[c] = from_float<T>(x * factor);
  }
  __syncthreads();
  return top + logf(total);
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kPlainThreads)
    plain_forward_kernel(PlainForward<T> args, Sizes s, DropoutMask dropout) {
  const int T_ = static_cast<int>(s.T), H = static_cast<int>(s.H), D = static_cast<int>(s.D);
  const int blocks = ceil_div(T_, kRows), past = static_cast<int>(args.past);
  const int head = static_cast<int>(blockIdx.x) / blocks, b = head / H, h = head % H;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x) % blocks) * kRows;
  const int rows = min(kRows, T_ - first);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const HeadMask mask(dropout, s, head);
  const T* const keys = args.k + b * args.kv_batch + h * D;
  const T* const values = args.v + b * args.kv_batch + h * D;

  LaneColumns q[kRows];
  WarpSoftmax softmax[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + min(r, rows - 1);
    q[r] = load_columns(args.q + b * args.q_batch + h * D + row * args.q_stride, D);
  }
  for (int key = warp; key < past + first + rows; key += kPlainWarps) {
    const LaneColumns k = load_columns(keys + key * args.kv_stride, D);
    const LaneColumns v = load_columns(values + key * args.kv_stride, D);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float score = dot(q[r], k, D) * s.scale;
      if (key > past + first + r) continue;
      take_key(softmax[r], score, !dropout.active || mask.keeps(first + r, key), v, D);
    }
  }

  float* const all = reinterpret_cast<float*>(ptx::shared_memory());
  const float factor = dropout.active ? mask.scale() : 1.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    T* const to = args.out + b * args.out_batch + h * D + (first + r) * args.out_stride;
    const float logsumexp = write_softmax(softmax[r], all, D, factor, to);
    if (args.logsumexp && threadIdx.x == 0)
      args.logsumexp[static_cast<int64_t>(head) * T_ + first + r] = logsumexp;
  }
}

// Adds the warps' columns in their order and writes them, times a factor, as a row of D.
template <typename T>
__device__ __forceinline__ void write_merged(const LaneColumns& columns, float* all, int D,
                                             float factor, T* to) {
  publish(columns, all, D);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < D; c += kPlainThreads) {
    float x = 0;
#pragma unroll
    for (int w = 0; w < kPlainWarps; ++w) x += all[w * D + c];
    to[c] = from_float<T>(x * factor);
  }
  __syncthreads();
}

// kOfKeys: the block's rows are keys, meet the queries from their own position on, and dk and dv
// are written. Else they are queries, meet the keys up to their own position, and dq is written.
template <typename T, bool kOfKeys>
__global__ void __launch_bounds__(kPlainThreads)
    plain_backward_kernel(PlainBackward<T> args, Sizes s, DropoutMask dropout) {
  constexpr int kRows = kPlainRows;
  const int T_ = static_cast<int>(s.T), H = static_cast<int>(s.H), D = static_cast<int>(s.D);
  const int blocks = ceil_div(T_, kRows);
  const int head = static_cast<int>(blockIdx.x) / blocks, b = head / H, h = head % H;
  const int first = static_cast<int>(blockIdx.x) % blocks * kRows;
  const int rows = min(kRows, T_ - first);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const HeadMask mask(dropout, s, head);
  const float keep_scale = dropout.active ? mask.scale() : 1.0f;
  const int64_t at = static_cast<int64_t>(b) * T_ * 3 * s.C + h * D;
  const T* const q = args.qkv + at;
  const T* const dout = args.dout + static_cast<int64_t>(b) * T_ * s.C + h * D;
  const RowStatistics* const statistics = args.statistics + head * padded_rows(s.T);
  // Rows (x, y) meet (u, w): keys and values meet queries and their dout, or the reverse.
  const int64_t stride = 3 * s.C, x_stride = stride, y_stride = kOfKeys ? stride : s.C;
  const int64_t w_stride = kOfKeys ? s.C : stride;
  const T *const xs = kOfKeys ? q + s.C : q, *const ys = kOfKeys ? q + 2 * s.C : dout;
  const T *const us = kOfKeys ? q : q + s.C, *const ws = kOfKeys ? dout : q + 2 * s.C;

  LaneColumns x[kRows], y[kRows], du[kRows], dw[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + min(r, rows - 1);
    x[r] = load_columns(xs + row * x_stride, D), y[r] = load_columns(ys + row * y_stride, D);
  }
  const int begin = kOfKeys ? first : 0, end = kOfKeys ? T_ : first + rows;
  for (int other = begin + warp; other < end; other += kPlainWarps) {
    const LaneColumns u = load_columns(us + other * stride, D);
    const LaneColumns w = load_columns(ws + other * w_stride, D);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float score = dot(x[r], u, D) * s.scale, dp = dot(y[r], w, D);
      const int row = first + min(r, rows - 1);
      const int query = kOfKeys ? other : row, key = kOfKeys ? row : other;
      if (key > query) continue;
      const RowStatistics of_query = statistics[query];
      const float p = expf(score - of_query.logsumexp);
      const float factor = !dropout.active || mask.keeps(query, key) ? keep_scale : 0.0f;
      add(du[r], 1, p * (dp * factor - of_query.delta) * s.scale, u, D);
      if constexpr (kOfKeys) add(dw[r], 1, p * factor, w, D);
    }
  }

  float* const all = reinterpret_cast<float*>(ptx::shared_memory());
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    T* const to = args.dqkv + at + (kOfKeys ? s.C : 0) + (first + r) * stride;
    write_merged(du[r], all, D, 1.0f, to);
    if constexpr (kOfKeys) write_merged(dw[r], all, D, 1.0f, to + s.C);
  }
}

template <typename T, int kRows>
void launch_forward(const PlainForward<T>& args, const Sizes& s, const DropoutMask& mask,
                    cudaStream_t stream) {
  LATHE_CHECK(s.D <= kLargestPlainHead, "head size {}, at most {}", s.D, kLargestPlainHead);
  LaunchShape shape;
  shape.grid.x = grid_of(s.B * s.H * ceil_div(s.T, kRows));
  shape.block.x = kPlainThreads;
  shape.shared_bytes = kPlainWarps * (static_cast<size_t>(s.D) + 2) * sizeof(float);
  launch(plain_forward_kernel<T, kRows>, shape, stream, args, s, mask);
}

// Copies keys and values of the new tokens into the cache, kWidth elements a thread.
template <typename T, int kWidth>
__global__ void append_kernel(const T* qkv, T* keys, T* values, Sizes s, int64_t positions,
                              int64_t past) {
  using Elements = Vec<T, kWidth>;
  const int64_t per_row = s.C / kWidth;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= s.B * s.T * per_row) return;
  const int64_t row = i / per_row, c = i % per_row * kWidth;
  const T* const from = qkv + row * 3 * s.C + c;
  const int64_t to = (row / s.T * positions + past + row % s.T) * s.C + c;
  Elements::load(from + s.C).store(keys + to);
  Elements::load(from + 2 * s.C).store(values + to);
}

template <typename T, int kWidth>
void append(const AttentionCached& args, const Sizes& s, cudaStream_t stream) {
  constexpr unsigned kAppendThreads = 256;
  LaunchShape shape;
  shape.grid.x = grid_of(ceil_div(s.B * s.T * (s.C / kWidth), kAppendThreads));
  shape.block.x = kAppendThreads;
  launch(append_kernel<T, kWidth>, shape, stream, data<T>(args.qkv_bt3c), data<T>(args.keys_bmc),
         data<T>(args.values_bmc), s, args.keys_bmc.shape[1], args.past);
}

}  // namespace

template <typename T>
void plain_forward(const PlainForward<T>& args, const Sizes& s, const DropoutMask& mask,
                   cudaStream_t stream) {
  launch_forward<T, kPlainRows>(args, s, mask, stream);
}

template <typename T>
void plain_backward(const PlainBackward<T>& args, const Sizes& s, const DropoutMask& mask,
                    cudaStream_t stream) {
  LATHE_CHECK(s.D <= kLargestPlainHead, "head size {}, at most {}", s.D, kLargestPlainHead);
  LaunchShape shape;
  shape.grid.x = grid_of(s.B * s.H * ceil_div(s.T, kPlainRows));
  shape.block.x = kPlainThreads;
  shape.shared_bytes = kPlainWarps * static_cast<size_t>(s.D) * sizeof(float);
  launch(plain_backward_kernel<T, true>, shape, stream, args, s, mask);
  launch(plain_backward_kernel<T, false>, shape, stream, args, s, mask);
}

template void plain_forward<float>(const PlainForward<float>&, const Sizes&, const DropoutMask&,
                                   cudaStream_t);
template void plain_forward<__nv_bfloat16>(const PlainForward<__nv_bfloat16>&, const Sizes&,
                                           const DropoutMask&, cudaStream_t);
template void plain_backward<float>(const PlainBackward<float>&, const Sizes&, const DropoutMask&,
                                    cudaStream_t);
template void plain_backward<__nv_bfloat16>(const PlainBackward<__nv_bfloat16>&, const Sizes&,
                                            const DropoutMask&, cudaStream_t);

}  // namespace attention

template <typename T>
void compute(const AttentionCached& args, const Context& context, const Tensor&) {
  using namespace attention;  // NOLINT: this function is the rest of that namespace
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, kernel_dtype<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.out_btc, kernel_dtype<T>, s.B * s.T, s.C, "out");
  LATHE_CHECK(args.keys_bmc.shape.rank == 3 && args.keys_bmc.shape[0] == s.B, "keys are {}",
              to_string(args.keys_bmc.shape));
  const int64_t M = args.keys_bmc.shape[1];
  check_matrix(args.keys_bmc, kernel_dtype<T>, s.B * M, s.C, "keys");
  check_matrix(args.values_bmc, kernel_dtype<T>, s.B * M, s.C, "values");
  LATHE_CHECK(args.past >= 0 && args.past + s.T <= M, "{} tokens after {} in a cache of {}", s.T,
              args.past, M);
  const T* const qkv = data<T>(args.qkv_bt3c);
  const T *const keys = data<T>(args.keys_bmc), *const values = data<T>(args.values_bmc);
  if (vectorizes<T>(qkv, s.C) && vectorizes<T>(keys, s.C) && vectorizes<T>(values, s.C)) {
    append<T, kVec<T>>(args, s, context.stream);
  } else {
    append<T, 1>(args, s, context.stream);
  }
  const PlainForward<T> forward{.q = qkv,
                                .k = keys,
                                .v = values,
                                .out = data<T>(args.out_btc),
                                .logsumexp = nullptr,
                                .q_stride = 3 * s.C,
                                .kv_stride = s.C,
                                .out_stride = s.C,
                                .q_batch = s.T * 3 * s.C,
                                .kv_batch = M * s.C,
                                .out_batch = s.T * s.C,
                                .past = args.past};
  launch_forward<T, 1>(forward, s, DropoutMask(Dropout{}), context.stream);
}

LATHE_CUDA_OPERATION(AttentionCached)

}  // namespace lathe::cuda
