// Softmax and cross-entropy over rows of logits, with the gradient in place of the logits.
//
//   top = max over v of l_v;  log_sum = log(sum over v of exp(l_v - top))
//   loss = (top - l_target) + log_sum;  dl_v = scale (exp((l_v - top) - log_sum) - [v == target])
//
// top and log_sum stay apart: where logits are large, rounding their sum would cost every
// probability as much as an ulp of it.
//
// Layout: logits fp32 [rows, padded_vocab], dense; dlogits of T over the same rows (see the
// header). One block owns one row: 32 threads where the vocabulary is small, 512 where it is large.
//
// Roofline, a row: 4 V bytes in, sizeof(T) V out, some 10 V FLOPs: bound by memory. The first pass
// takes maximum and sum in one go (online softmax: Milakov and Gimelshein, 2018), the second reads
// the row again, out of L1 or L2: the product that wrote the chunk left it there.
#include <cuda_bf16.h>

#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace lathe::cuda {

namespace {

// The largest of some logits, and the sum of exp(logit - largest).
struct RunningSum {
  float top = -INFINITY, sum = 0;

  template <int N>
  __device__ __forceinline__ void add(const float (&logits)[N]) {
    float next = top;
#pragma unroll
    for (int i = 0; i < N; ++i) next = Max()(logits[i], next);
    sum *= __expf(top - next);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += __expf(logits[i] - next);
    top = next;
  }
};

// kN neighbours of a row; what lies past the vocabulary weighs nothing.
template <int kN>
__device__ __forceinline__ void load_logits(const float* row, int64_t v, int64_t vocab_size,
                                            float (&logits)[kN]) {
  const auto loaded = Vec<float, kN>::load(row + v);
#pragma unroll
  for (int i = 0; i < kN; ++i) logits[i] = v + i < vocab_size ? loaded.at[i] : -INFINITY;
}

// top + log_sum is the logarithm of the sum of exp(logit).
struct LogSumExp {
  float top, log_sum;
};

// Every thread gets it. A NaN among the logits reaches the sum, whatever the maximum makes of it.
template <int kThreads, int kN>
__device__ LogSumExp log_sum_exp(const float* row, int64_t vocab_size) {
  RunningSum running;
  float logits[kN];
#pragma unroll 4
  for (int64_t v = threadIdx.x * kN; v < vocab_size; v += kThreads * kN) {
    load_logits(row, v, vocab_size, logits);
    running.add(logits);
  }
  auto* scratch = reinterpret_cast<float*>(ptx::shared_memory());
  const float top = block_reduce<kThreads>(running.top, scratch, Max());
  const float share = running.sum == 0 ? 0 : running.sum * __expf(running.top - top);
  return {top, logf(block_reduce<kThreads>(share, scratch, Sum()))};
}

// Goes through the row from its start, kThreads kN columns at a time. Elements of T are no longer
// than logits: what is written lies over logits that all threads have read before the barrier.
template <typename T, int kThreads, int kN>
__device__ void write_gradient(float* row, const LogSumExp& total, int32_t target, float scale,
                               int64_t vocab_size, int64_t padded_vocab) {
  T* gradient = reinterpret_cast<T*>(row);
  for (int64_t first = 0; first < padded_vocab; first += kThreads * kN) {
    const int64_t v = first + threadIdx.x * kN;
    float logits[kN];
    if (v < padded_vocab) load_logits(row, v, target < 0 ? 0 : vocab_size, logits);
    __syncthreads();
    if (v >= padded_vocab) continue;
    Vec<T, kN> out;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float p = __expf((logits[i] - total.top) - total.log_sum);
      out.at[i] = from_float<T>((v + i == target ? p - 1 : p) * scale);
    }
    out.store(gradient + v);
  }
}

struct RowsOfLogits {
  float* logits;
  float* losses;
  const int32_t* targets;
  int64_t vocab_size, padded_vocab;
  float scale;
  bool gradient;
};

template <typename T, int kThreads, int kN>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(RowsOfLogits p) {
  const int64_t r = blockIdx.x;
  float* row = p.logits + r * p.padded_vocab;
  const int32_t target = p.targets[r];
  LogSumExp total{0, 0};  // any finite value: no logit of an ignored row is looked at
  if (target >= 0) total = log_sum_exp<kThreads, kN>(row, p.vocab_size);
  if (target >= p.vocab_size) total.log_sum = NAN;
  if (threadIdx.x == 0) {
    const float logit = row[target >= 0 && target < p.vocab_size ? target : 0];
    p.losses[r] = target < 0 ? 0 : (total.top - logit) + total.log_sum;
  }
  __syncthreads();  // the logit of the target has been read
  if (p.gradient)
    write_gradient<T, kThreads, kN>(row, total, target, p.scale, p.vocab_size, p.padded_vocab);
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
void launch_rows(const CrossEntropyRows& args, cudaStream_t stream) {
  const RowsOfLogits p{args.logits_rv,  args.losses_r,     args.targets_r,
                       args.vocab_size, args.padded_vocab, static_cast<float>(args.scale),
                       args.gradient};
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows)), dim3(kThreads),
                          kThreads / kWarp * sizeof(float)};
  if (vectorizes<float>(args.logits_rv, args.padded_vocab)) {
    launch(cross_entropy_kernel<T, kThreads, 4>, shape, stream, p);
  } else {
    launch(cross_entropy_kernel<T, kThreads, 1>, shape, stream, p);
  }
}

}  // namespace

template <typename T>
void cross_entropy_rows(const CrossEntropyRows& args, cudaStream_t stream) {
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= args.padded_vocab, "{} of {}",
              args.vocab_size, args.padded_vocab);
  constexpr int64_t kSmallVocabulary = 1024;
  if (args.padded_vocab <= kSmallVocabulary) {
    launch_rows<T, kWarp>(args, stream);
  } else {
    launch_rows<T, 512>(args, stream);
  }
}

void add_losses(const float* losses_n, int64_t rows, double scale, StepResults* results,
                cudaStream_t stream) {
  LATHE_CHECK(results != nullptr);
  launch(add_losses_kernel, {dim3(1), dim3(kSumThreads), kSumThreads / kWarp * sizeof(double)},
         stream, losses_n, rows, scale, results);
}

template void cross_entropy_rows<float>(const CrossEntropyRows&, cudaStream_t);
template void cross_entropy_rows<__nv_bfloat16>(const CrossEntropyRows&, cudaStream_t);

}  // namespace lathe::cuda
