// Softmax and cross-entropy over rows of logits, with the gradient in place of the logits.
//
//   top = max over v of l_v;  sum = sum over v of exp(l_v - top)
//   loss = (top - l_target) + log(sum);  dl_v = scale (exp(l_v - top) / sum - [v == target])
//
// top and log(sum) stay apart: if logits are large, rounding their sum would give every probability
// a relative error of up to an ulp of that sum.
//
// Layout: logits fp32 [rows, padded_vocab], dense; dlogits of T over the same rows (see the
// header). One block owns one row: 32 threads if the vocabulary is small, 512 if it is large.
// A row is processed in rounds of kVectors vectors of kN logits a thread. Which thread takes which
// columns, and the order of every sum, is the same in both kernels, and so are the bits:
// - streamed_rows_kernel, one block per row, reads the row twice: once for its maximum and sum
//   (online softmax: Milakov and Gimelshein, 2018), then for the gradient.
// - resident_rows_kernel keeps the row in shared memory between the two, and loads the block's next
//   row while it writes the gradient of this one.
//
// Roofline per row: 4 V bytes in, sizeof(T) V out, some 10 V FLOPs: memory-bound. If the vocabulary
// is large, the rows that streaming blocks hold at once exceed L2, and the second read costs 4 V
// bytes more. Then rows must be resident, if shared memory holds one.
#include <cuda_bf16.h>

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace lathe::cuda {

namespace {

constexpr int kVectors = 4;  // per round and thread

// The number of columns in a round.
constexpr int columns_of_round(int threads, int vector) {
  return threads * vector * kVectors;
}
template <int kThreads, int kN>
inline constexpr int kRound = columns_of_round(kThreads, kN);

// The first of the kN columns that this thread takes as vector j of the round from `first` on.
template <int kThreads, int kN>
__device__ __forceinline__ int64_t column_of(int64_t first, int j) {
  return first + (j * kThreads + static_cast<int>(threadIdx.x)) * kN;
}
// The thread that takes a column.
template <int kThreads, int kN>
__device__ __forceinline__ int thread_of(int32_t column) {
  return column / kN % kThreads;
}

__device__ __forceinline__ float exponential(float x) {
  return ptx::exp2(__fmul_rn(x, 1.44269504f));
}

// Combines all values by one operation, in a fixed order that halves them repeatedly.
template <int N, typename Op>
__device__ __forceinline__ float folded(const float (&values)[N], Op op) {
  if constexpr (N == 1) {
    return values[0];
  } else {
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) half[i] = op(values[i], values[i + N / 2]);
    return folded(half, op);
  }
}
// If one of two numbers is NaN, returns the other: the sum shows a NaN.
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The largest of some logits, and the sum of exp(logit - largest). `top` starts at the lowest
// finite number, so that a difference is never -infinity minus itself.
struct RunningSum {
  float top = -FLT_MAX, sum = 0;

  template <int N>
  __device__ __forceinline__ void add(const float (&logits)[N]) {
    const float next = fmaxf(top, folded(logits, Larger()));
    float terms[N];
#pragma unroll
    for (int i = 0; i < N; ++i) terms[i] = exponential(logits[i] - next);
    sum = __fmaf_rn(sum, exponential(top - next), folded(terms, Sum()));
    top = next;
  }
};

// kN neighbours of a row; -infinity past the vocabulary.
template <int kN>
__device__ __forceinline__ void load_masked(const float* row, int64_t v, int64_t vocab_size,
                                            float (&logits)[kN]) {
  const auto loaded = Vec<float, kN>::load(row + v);
#pragma unroll
  for (int i = 0; i < kN; ++i) logits[i] = v + i < vocab_size ? loaded.at[i] : -INFINITY;
}
// This thread's columns of a round that lies within the vocabulary.
template <int kThreads, int kN>
__device__ __forceinline__ void load_round(const float* row, int64_t first,
                                           float (&logits)[kVectors * kN]) {
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const auto loaded = Vec<float, kN>::load(row + column_of<kThreads, kN>(first, j));
#pragma unroll
    for (int i = 0; i < kN; ++i) logits[j * kN + i] = loaded.at[i];
  }
}

// All threads call it, with a row in global or in shared memory, and get the row's result. It calls
// arrive() before a thread reads its columns of a round, in the order of the rounds. A NaN among
// the logits reaches the sum, whatever the maximum does with it.
template <int kThreads, int kN, typename Arrive>
__device__ __forceinline__ RunningSum sum_row(const float* row, int64_t vocab_size, Arrive arrive) {
  RunningSum running;
  int64_t first = 0;
  for (; first + kRound<kThreads, kN> <= vocab_size; first += kRound<kThreads, kN>) {
    arrive();
    float logits[kVectors * kN];
    load_round<kThreads, kN>(row, first, logits);
    running.add(logits);
  }
  if (first < vocab_size) {
    arrive();
    float logits[kVectors][kN];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int64_t v = column_of<kThreads, kN>(first, j);
      if (v < vocab_size) load_masked(row, v, vocab_size, logits[j]);
    }
#pragma unroll
    for (int j = 0; j < kVectors; ++j)
      if (column_of<kThreads, kN>(first, j) < vocab_size) running.add(logits[j]);
  }
  auto* scratch = reinterpret_cast<float*>(ptx::shared_memory());
  const float top = block_reduce<kThreads>(running.top, scratch, Larger());
  const float share = __fmul_rn(running.sum, exponential(running.top - top));
  return {top, block_reduce<kThreads>(share, scratch, Sum())};
}

struct RowsOfLogits {
  float* logits;
  float* losses;
  const int32_t* targets;
  int64_t rows, vocab_size, padded_vocab;
  float scale;
  bool gradient;
};

// What a thread needs of a row for its columns of the gradient.
struct RowGradient {
  float top, weight, scale;  // dl = weight exp(l - top), minus `scale` at the target
  int64_t vocab_size;        // 0: the row is ignored
  int32_t target;            // -1: not this thread's
  float target_logit;

  __device__ __forceinline__ float at(float logit) const {
    return __fmul_rn(exponential(logit - top), weight);
  }
  __device__ __forceinline__ float at_target() const {
    return __fmaf_rn(exponential(target_logit - top), weight, -scale);
  }
};

// The thread that owns the target's column writes the loss. `total` may be anything if the
// target is below 0.
template <int kThreads, int kN>
__device__ __forceinline__ RowGradient write_loss(const RowsOfLogits& p, int64_t r, int32_t target,
                                                  const float* row, RunningSum total) {
  const bool ignored = target < 0, known = !ignored && target < p.vocab_size;
  if (ignored) total = {0, 1};
  if (!ignored && !known) total.sum = NAN;
  const bool mine = static_cast<int>(threadIdx.x) == thread_of<kThreads, kN>(known ? target : 0);
  RowGradient gradient{total.top, p.scale / total.sum, p.scale, ignored ? 0 : p.vocab_size, -1, 0};
  if (!mine) return gradient;
  if (known) gradient.target = target, gradient.target_logit = row[target];
  p.losses[r] = ignored ? 0 : (total.top - gradient.target_logit) + logf(total.sum);
  return gradient;
}

// Writes the gradient of a round. Calls read() after this thread's loads from `row`, in global or
// in shared memory, and before its stores.
template <typename T, int kThreads, int kN, typename Read>
__device__ __forceinline__ void write_round(const RowGradient& gradient, const float* row, T* to,
                                            int64_t first, int64_t padded_vocab, Read read) {
  const auto store = [&](int64_t v, const float* logits) {
    Vec<T, kN> out;
#pragma unroll
    for (int i = 0; i < kN; ++i) out.at[i] = from_float<T>(gradient.at(logits[i]));
    out.store(to + v);
  };
  if (first + kRound<kThreads, kN> <= gradient.vocab_size) {
    float logits[kVectors * kN];
    load_round<kThreads, kN>(row, first, logits);
    read();
#pragma unroll
    for (int j = 0; j < kVectors; ++j) store(column_of<kThreads, kN>(first, j), logits + j * kN);
    return;
  }
  float logits[kVectors][kN];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int64_t v = column_of<kThreads, kN>(first, j);
    if (v < padded_vocab) load_masked(row, v, gradient.vocab_size, logits[j]);
  }
  read();
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int64_t v = column_of<kThreads, kN>(first, j);
    if (v < padded_vocab) store(v, logits[j]);
  }
}

// After the last round. The thread that owns the target's column has written to it before.
template <typename T>
__device__ __forceinline__ void store_target(const RowGradient& gradient, T* to) {
  if (gradient.target >= 0) to[gradient.target] = from_float<T>(gradient.at_target());
}

constexpr int kStreamingThreads = 1024;  // per multiprocessor, at least

// Elements of T are no longer than logits, so a round writes only over logits that all threads
// have read before the barrier.
template <typename T, int kThreads, int kN>
__global__ void __launch_bounds__(kThreads, kStreamingThreads / kThreads)
    streamed_rows_kernel(RowsOfLogits p) {
  const int64_t r = blockIdx.x;
  float* row = p.logits + r * p.padded_vocab;
  const int32_t target = p.targets[r];
  RunningSum total;
  if (target >= 0) total = sum_row<kThreads, kN>(row, p.vocab_size, [] {});
  const RowGradient gradient = write_loss<kThreads, kN>(p, r, target, row, total);
  if (!p.gradient) return;
  T* to = reinterpret_cast<T*>(row);
  for (int64_t first = 0; first < p.padded_vocab; first += kRound<kThreads, kN>) {
    write_round<T, kThreads, kN>(gradient, row, to, first, p.padded_vocab, [] { __syncthreads(); });
  }
  store_target(gradient, to);
}

constexpr int kLargeBlock = 512;            // threads if the vocabulary is large
constexpr int kBlocksOfMultiprocessor = 1;  // each with a row in shared memory
constexpr int kRounds = 8;                  // in the longest row that can be resident
constexpr size_t kScratchBytes = kLargeBlock / kWarp * sizeof(float);

// Starts to load this thread's columns of a round of row r, if there is such a row.
__device__ __forceinline__ void start_round(const RowsOfLogits& p, int64_t r, int round,
                                            float* resident) {
  if (r < p.rows) {
    const float* row = p.logits + r * p.padded_vocab;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int64_t v =
          column_of<kLargeBlock, kVec<float>>(round * kRound<kLargeBlock, kVec<float>>, j);
      if (v < p.padded_vocab) ptx::cp_async_16(resident + v, row + v);
    }
  }
  ptx::cp_async_commit();
}

// Block b takes rows b, b + gridDim.x, ... Each thread loads and reads only its own columns, so it
// needs no barrier before it reads or overwrites them.
template <typename T>
__global__ void __launch_bounds__(kLargeBlock, kBlocksOfMultiprocessor)
    resident_rows_kernel(RowsOfLogits p) {
  auto* resident = reinterpret_cast<float*>(ptx::shared_memory() + kScratchBytes);
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) start_round(p, blockIdx.x, round, resident);
  for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const int32_t target = p.targets[r];
    // kRounds loads were committed, then one empty group per round waited for. All but the newest
    // kRounds - 1 groups must have arrived, so the count to wait for is a constant.
    const RunningSum total = sum_row<kLargeBlock, kVec<float>>(resident, p.vocab_size, [] {
      ptx::cp_async_wait<kRounds - 1>();
      ptx::cp_async_commit();
    });
    ptx::cp_async_wait<0>();
    const RowGradient gradient =
        write_loss<kLargeBlock, kVec<float>>(p, r, target, resident, total);
    T* to = reinterpret_cast<T*>(p.logits + r * p.padded_vocab);
#pragma unroll 1
    for (int round = 0; round < kRounds; ++round) {
      const int64_t first = round * kRound<kLargeBlock, kVec<float>>;
      write_round<T, kLargeBlock, kVec<float>>(gradient, resident, to, first, p.padded_vocab,
                                               [] {});
      start_round(p, r + gridDim.x, round, resident);
    }
    store_target(gradient, to);
  }
}

constexpr int kSumThreads = 1024;

// Thread t sums rows t, t + kSumThreads, ...; the threads' sums are added as block_reduce does.
__global__ void __launch_bounds__(kSumThreads)
    add_losses_kernel(const float* losses, int64_t rows, double scale, StepResults* results) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kSumThreads) sum += static_cast<double>(losses[r]);
  auto* scratch = reinterpret_cast<double*>(ptx::shared_memory());
  sum = block_reduce<kSumThreads>(sum, scratch, Sum());
  if (threadIdx.x == 0) results->loss += scale * sum;
}

template <typename T, int kThreads>
void launch_streamed(const RowsOfLogits& p, cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(p.rows)), dim3(kThreads),
                          kThreads / kWarp * sizeof(float)};
  if (vectorizes<float>(p.logits, p.padded_vocab)) {
    launch(streamed_rows_kernel<T, kThreads, kVec<float>>, shape, stream, p);
  } else {
    launch(streamed_rows_kernel<T, kThreads, 1>, shape, stream, p);
  }
}

constexpr size_t resident_bytes(int64_t padded_vocab) {
  return kScratchBytes + static_cast<size_t>(padded_vocab) * sizeof(float);
}

}  // namespace

// Rows shorter than kLeast stay in L2 between the two reads of a streaming block, and with only one
// such row per multiprocessor too few bytes would be in flight. Without a gradient, either kernel
// reads a row once.
bool rows_are_resident(const CrossEntropyRows& args, const Context& context) {
  constexpr int64_t kLeast = 16384, kMost = kRounds * kRound<kLargeBlock, kVec<float>>;
  return args.gradient && args.padded_vocab >= kLeast && args.padded_vocab <= kMost &&
         resident_bytes(args.padded_vocab) <= context.shared_bytes_of_block &&
         vectorizes<float>(args.logits_rv, args.padded_vocab);
}

template <typename T>
void cross_entropy_rows(const CrossEntropyRows& args, const Context& context) {
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= args.padded_vocab, "{} of {}",
              args.vocab_size, args.padded_vocab);
  const RowsOfLogits p{args.logits_rv,
                       args.losses_r,
                       args.targets_r,
                       args.rows,
                       args.vocab_size,
                       args.padded_vocab,
                       static_cast<float>(args.scale),
                       args.gradient};
  constexpr int64_t kSmallVocabulary = 1024;
  if (rows_are_resident(args, context)) {
    const int64_t blocks =
        std::min<int64_t>(p.rows, context.multiprocessors * kBlocksOfMultiprocessor);
    launch(resident_rows_kernel<T>,
           {dim3(static_cast<unsigned>(blocks)), dim3(kLargeBlock), resident_bytes(p.padded_vocab)},
           context.stream, p);
  } else if (p.padded_vocab <= kSmallVocabulary) {
    launch_streamed<T, kWarp>(p, context.stream);
  } else {
    launch_streamed<T, kLargeBlock>(p, context.stream);
  }
}

void add_losses(const float* losses_n, int64_t rows, double scale, StepResults* results,
                cudaStream_t stream) {
  LATHE_CHECK(results != nullptr);
  launch(add_losses_kernel, {dim3(1), dim3(kSumThreads), kSumThreads / kWarp * sizeof(double)},
         stream, losses_n, rows, scale, results);
}

template void cross_entropy_rows<float>(const CrossEntropyRows&, const Context&);
template void cross_entropy_rows<__nv_bfloat16>(const CrossEntropyRows&, const Context&);

}  // namespace lathe::cuda
