// The norm of the whole gradient, the factor by which AdamW multiplies gradients, and whether to
// skip the update; also the start of a step.
//
//   grad_norm = sqrt(sum of g^2);  clip_scale = min(1, grad_clip / grad_norm)
//
// Layout: flat fp32 gradients; sums of squares in double, one per kNormBlock elements. The order is
// the CPU's (kernels/cpu/global_norm.cpp), and a float's square is exact in double, so the bits are
// the CPU's, too: element i of a block goes to lane i % 32, the lanes are added as a tree, and so
// are the blocks.
//
// Roofline: 4 bytes and one FLOP in double per element: memory-bound on a GPU with units for
// double. One warp takes a block, 128 bytes a load, eight loads in flight.
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kWarps = 8;  // blocks of the norm per block of threads
constexpr int kTreeThreads = 512;
constexpr int kFan = 8;  // values that a thread adds at a time: three levels of the tree

__global__ void __launch_bounds__(kWarps* kWarp)
    squares_kernel(const float* gradients, int64_t count, double* sums) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t first = block * kNormBlock;
  if (first >= count) return;
  const int64_t end = min(count, first + kNormBlock);
  double sum = 0;
#pragma unroll 8
  for (int64_t i = first + threadIdx.x % kWarp; i < end; i += kWarp) {
    const double g = static_cast<double>(gradients[i]);
    sum += g * g;
  }
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % kWarp == 0) sums[block] = sum;
}

// Three levels of the tree over values[first .. first + 8): values missing at the end count as 0,
// which changes no sum.
__device__ __forceinline__ double sum_of_children(const double* values, int64_t first,
                                                  int64_t count) {
  double v[kFan];
#pragma unroll
  for (int i = 0; i < kFan; ++i) v[i] = first + i < count ? values[first + i] : 0.0;
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// One block adds the sums, in place: before it writes at i it has read 8 i .. 8 i + 7.
__global__ void __launch_bounds__(kTreeThreads)
    finish_kernel(double* sums, int64_t count, double grad_clip, StepResults* results) {
  while (count > 1) {
    const int64_t next = ceil_div(count, kFan);
    for (int64_t round = 0; round < next; round += kTreeThreads) {
      const int64_t i = round + threadIdx.x;
      const double sum = i < next ? sum_of_children(sums, i * kFan, count) : 0.0;
      __syncthreads();
      if (i < next) sums[i] = sum;
      __syncthreads();
    }
    count = next;
  }
  if (threadIdx.x != 0) return;
  const double norm = count == 0 ? 0.0 : sqrt(sums[0]);
  results->grad_norm = norm;
  results->clip_scale = grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1.0;
  results->skip = std::isfinite(norm) && std::isfinite(results->loss) ? 0 : 1;
}

__global__ void begin_step_kernel(StepResults* results, const StepInputs* inputs) {
  results->loss = inputs->first_loss;
  results->stop_votes = inputs->stop_vote;
}

}  // namespace

template <typename T>
void compute(const SquareSums& args, const Context& context, const Tensor&) {
  const int64_t elements = args.gradients.elements(), blocks = norm_blocks(elements);
  check_vector(args.gradients, DType::fp32, elements, "gradients");
  check_vector(args.sums, DType::fp64, blocks, "sums");
  launch(squares_kernel,
         {dim3(static_cast<unsigned>(ceil_div(blocks, kWarps))), dim3(kWarps * kWarp)},
         context.stream, data<float>(args.gradients), elements, data<double>(args.sums));
}

template <typename T>
void compute(const ClipScale& args, const Context& context, const Tensor&) {
  check_vector(args.sums, DType::fp64, args.sums.elements(), "sums");
  LATHE_CHECK(args.results != nullptr && args.grad_clip >= 0);
  launch(finish_kernel, {dim3(1), dim3(kTreeThreads)}, context.stream, data<double>(args.sums),
         args.sums.elements(), args.grad_clip, args.results);
}

template <typename T>
void compute(const BeginStep& args, const Context& context, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.inputs != nullptr);
  launch(begin_step_kernel, {dim3(1), dim3(1)}, context.stream, args.results, args.inputs);
}

LATHE_CUDA_OPERATION(SquareSums)
LATHE_CUDA_OPERATION(ClipScale)
LATHE_CUDA_OPERATION(BeginStep)

}  // namespace lathe::cuda
