// AdamW over flat parameters in one launch. With g = clip_scale gradient and t = updates + 1:
//
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
//
// Layout: flat fp32 masters w, moments m and v, gradients; weights of T, or none. A thread owns 4
// neighbours, 16 bytes of each tensor. A short list of segments gives the weight decay; elements in
// no segment are left unchanged.
//
// Roofline: memory-bound: 28 bytes an element in fp32, 30 with bf16 weights, for some 20 FLOPs.
// With about 50 registers a thread, a multiprocessor holds some 1,024 threads, with 64 KiB of loads
// in flight.
//
// A launch of one thread after the step's last update counts the step: by then all blocks have read
// the old count.
#include <cuda_bf16.h>

#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rounding.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256, kPerThread = 4;
using Float4 = Vec<float, kPerThread>;

template <typename T>
struct Update {
  float *masters, *m, *v;
  const float* gradients;
  T* weights;  // or null
  int64_t elements;
  const OptimizerSegment* segments;
  int64_t segment_count;
  float beta1, beta2, eps;
  double log_beta1, log_beta2;  // b^t = exp(t log b)
  const StepInputs* inputs;
  const StepResults* results;
  bool stochastic_rounding;
};

// Factors that change from step to step.
struct Factors {
  float correction1, correction2;  // 1 / (1 - b^t)
  float clip_scale, learning_rate;
};

// One thread of a block computes them, in double.
template <typename T>
__device__ Factors read_factors(const Update<T>& p) {
  auto* shared = reinterpret_cast<Factors*>(ptx::shared_memory());
  if (threadIdx.x == 0) {
    const double t = static_cast<double>(p.results->updates + 1);
    *shared = {static_cast<float>(-1 / expm1(t * p.log_beta1)),
               static_cast<float>(-1 / expm1(t * p.log_beta2)),
               static_cast<float>(p.results->clip_scale), p.inputs->learning_rate};
  }
  __syncthreads();
  return *shared;
}

// The first segment that ends after element e.
__device__ __forceinline__ int64_t find_segment(const OptimizerSegment* segments, int64_t count,
                                                int64_t e) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (segments[middle].end > e) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The weight decay of four neighbours, a bit mask of those that lie in a segment, and the shift of
// those that do.
template <typename T>
__device__ __forceinline__ unsigned find_decay(const Update<T>& p, int64_t first, Float4& decay,
                                               int64_t& shift) {
  unsigned owned = 0;
  int64_t s = find_segment(p.segments, p.segment_count, first);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t e = first + i;
    while (s < p.segment_count && p.segments[s].end <= e) ++s;
    const bool inside = s < p.segment_count && p.segments[s].begin <= e;
    decay.at[i] = inside ? p.segments[s].weight_decay : 0.0f;
    owned |= static_cast<unsigned>(inside) << i;
    if (inside) shift = p.segments[s].shift;
  }
  return owned;
}

template <typename T>
__device__ __forceinline__ void update_element(const Update<T>& p, const Factors& f, float gradient,
                                               float decay, float& w, float& m, float& v) {
  const float g = gradient * f.clip_scale;
  m = p.beta1 * m + (1.0f - p.beta1) * g;
  v = p.beta2 * v + (1.0f - p.beta2) * (g * g);
  const float step = m * f.correction1 / (sqrtf(v * f.correction2) + p.eps);
  w -= f.learning_rate * (step + decay * w);
}

// Stores the weights of those of four neighbours that lie in a segment.
template <typename T>
__device__ __forceinline__ void store_weights(const Update<T>& p, int64_t first, int64_t shift,
                                              const Float4& w, unsigned owned) {
  Vec<T, kPerThread> weights;
  if constexpr (sizeof(T) == 2) {
    if (p.stochastic_rounding) {
      const uint32_t t = static_cast<uint32_t>(p.results->updates + 1);
      const auto words = rounding_words(p.inputs->seed, (first + shift) / kPerThread, t);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) weights.at[i] = rounded_at_random(w.at[i], words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) weights.at[i] = from_float<T>(w.at[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) weights.at[i] = w.at[i];
  }
  if (owned == 0xf) {
    weights.store(p.weights + first);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    if (owned >> i & 1) p.weights[first + i] = weights.at[i];
}

// Fewer than four elements at the end of the tensors.
__device__ __forceinline__ Float4 load_some(const float* from, int count) {
  if (count == kPerThread) return Float4::load(from);
  Float4 x{};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    if (i < count) x.at[i] = from[i];
  return x;
}
__device__ __forceinline__ void store_some(const Float4& x, float* to, int count) {
  if (count == kPerThread) return x.store(to);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    if (i < count) to[i] = x.at[i];
}

template <typename T>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Update<T> p) {
  if (p.results->skip) return;  // all threads of all blocks
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  const int count = static_cast<int>(min(int64_t{kPerThread}, p.elements - first));
  Float4 w{}, m{}, v{}, g{}, decay{};
  if (count > 0) {
    w = load_some(p.masters + first, count), m = load_some(p.m + first, count);
    v = load_some(p.v + first, count), g = load_some(p.gradients + first, count);
  }
  const Factors factors = read_factors(p);
  if (count <= 0) return;
  int64_t shift = 0;
  const unsigned owned = find_decay(p, first, decay, shift);
  if (owned == 0) return;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    if (owned >> i & 1) update_element(p, factors, g.at[i], decay.at[i], w.at[i], m.at[i], v.at[i]);
  store_some(w, p.masters + first, count);
  store_some(m, p.m + first, count);
  store_some(v, p.v + first, count);
  if (p.weights) store_weights(p, first, shift, w, owned);
}

__global__ void count_update_kernel(StepResults* results) {
  if (!results->skip) ++results->updates;
}

template <typename T>
void check_arguments(const AdamW& args, int64_t elements) {
  check_vector(args.masters, DType::fp32, elements, "masters");
  check_vector(args.m, DType::fp32, elements, "m");
  check_vector(args.v, DType::fp32, elements, "v");
  check_vector(args.gradients, DType::fp32, elements, "gradients");
  if (args.weights) check_vector(args.weights, kernel_dtype<T>, elements, "weights");
  LATHE_CHECK(!args.stochastic_rounding || args.weights.dtype == DType::bf16,
              "stochastic rounding to {}", name_of(args.weights.dtype));
  LATHE_CHECK(args.inputs != nullptr && args.results != nullptr);
  LATHE_CHECK(args.segments != nullptr || args.segment_count == 0);
}

}  // namespace

template <typename T>
void compute(const AdamW& args, const Context& context, const Tensor&) {
  const int64_t elements = args.masters.elements();
  check_arguments<T>(args, elements);
  const Update<T> p{data<float>(args.masters),
                    data<float>(args.m),
                    data<float>(args.v),
                    data<float>(args.gradients),
                    data<T>(args.weights),
                    elements,
                    args.segments,
                    args.segment_count,
                    args.beta1,
                    args.beta2,
                    args.eps,
                    std::log(static_cast<double>(args.beta1)),
                    std::log(static_cast<double>(args.beta2)),
                    args.inputs,
                    args.results,
                    args.stochastic_rounding};
  LATHE_CHECK(can_vectorize(0, p.masters, p.m, p.v, p.gradients, p.weights),
              "parameters are not aligned");
  launch(adamw_kernel<T>,
         {dim3(static_cast<unsigned>(ceil_div(elements, kThreads * kPerThread))), dim3(kThreads),
          sizeof(Factors)},
         context.stream, p);
  if (args.last) launch(count_update_kernel, {dim3(1), dim3(1)}, context.stream, args.results);
}

LATHE_CUDA_OPERATION(AdamW)

}  // namespace lathe::cuda
