// Elementwise conversion between number types: destination = source, rounded to nearest even, or
// destination += source.
//
// Layout: flat. A thread converts as many neighbours as make 16 bytes of the larger type. Roofline:
// memory-bound: the sum of both sizes in bytes an element, with the destination's twice if it is
// added to.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rounding.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256;

// double to bf16 goes through float, as on the CPU.
template <typename To, typename From>
__device__ __forceinline__ To converted(From x) {
  if constexpr (sizeof(From) == 2) {
    return static_cast<To>(to_float(x));
  } else if constexpr (sizeof(To) == 2) {
    return from_float<To>(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

template <bool kAccumulate, typename To, typename From>
__device__ __forceinline__ void convert(To& to, From from) {
  if constexpr (kAccumulate) {
    to += converted<To>(from);
  } else {
    to = converted<To>(from);
  }
}

template <bool kAccumulate, typename To, typename From, int kN>
__global__ void __launch_bounds__(kThreads) cast_kernel(To* to, const From* from, int64_t count) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kN;
  if (at + kN > count) {
    for (int64_t i = at; i < count; ++i) convert<kAccumulate>(to[i], from[i]);
    return;
  }
  const auto in = Vec<From, kN>::load(from + at);
  Vec<To, kN> out;
  if constexpr (kAccumulate) out = Vec<To, kN>::load(to + at);
#pragma unroll
  for (int i = 0; i < kN; ++i) convert<kAccumulate>(out.at[i], in.at[i]);
  out.store(to + at);
}

template <bool kAccumulate, typename To, typename From>
void cast_elements(const Cast& args, cudaStream_t stream) {
  const int64_t count = args.source.elements();
  const auto* from = data<From>(args.source);
  auto* to = data<To>(args.destination);
  const auto launch_by = [&]<int kN>() {
    launch(cast_kernel<kAccumulate, To, From, kN>,
           {dim3(static_cast<unsigned>(ceil_div(count, kThreads * kN))), dim3(kThreads)}, stream,
           to, from, count);
  };
  constexpr int kMost = std::min(kVec<From>, kVec<To>);
  if (can_vectorize(0, to, from)) {
    launch_by.template operator()<kMost>();
  } else {
    launch_by.template operator()<1>();
  }
}

__global__ void __launch_bounds__(kThreads)
    stochastic_kernel(__nv_bfloat16* to, const float* from, int64_t count,
                      const StepInputs* rounding, int64_t first_group) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto words = rounding_words(rounding->seed, first_group + group, rounding->step);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (4 * group + i < count) to[4 * group + i] = rounded_at_random(from[4 * group + i], words[i]);
}

void cast_stochastically(const Cast& args, cudaStream_t stream) {
  const int64_t count = args.source.elements();
  launch(stochastic_kernel,
         {dim3(static_cast<unsigned>(ceil_div(count, kThreads * 4))), dim3(kThreads)}, stream,
         data<__nv_bfloat16>(args.destination), data<float>(args.source), count, args.rounding,
         args.first_element / 4);
}

template <typename From>
void cast_from(const Cast& args, cudaStream_t stream) {
  switch (args.destination.dtype) {
    case DType::fp32:
      return args.accumulate ? cast_elements<true, float, From>(args, stream)
                             : cast_elements<false, float, From>(args, stream);
    case DType::fp64:
      return args.accumulate ? cast_elements<true, double, From>(args, stream)
                             : cast_elements<false, double, From>(args, stream);
    case DType::bf16:
      LATHE_CHECK(!args.accumulate, "sums in bf16");
      return cast_elements<false, __nv_bfloat16, From>(args, stream);
    default:
      LATHE_CHECK(false, "cast to {}", name_of(args.destination.dtype));
  }
}

}  // namespace

template <typename T>
void compute(const Cast& args, const Context& context, const Tensor&) {
  check_vector(args.source, args.source.dtype, args.destination.elements(), "source");
  check_vector(args.destination, args.destination.dtype, args.source.elements(), "destination");
  if (args.rounding) return cast_stochastically(args, context.stream);
  switch (args.source.dtype) {
    case DType::fp32:
      return cast_from<float>(args, context.stream);
    case DType::bf16:
      return cast_from<__nv_bfloat16>(args, context.stream);
    case DType::fp64:
      return cast_from<double>(args, context.stream);
    default:
      LATHE_CHECK(false, "cast from {}", name_of(args.source.dtype));
  }
}

LATHE_CUDA_OPERATION(Cast)

}  // namespace lathe::cuda
