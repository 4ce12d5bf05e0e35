// The norm of the whole gradient, the factor by which AdamW multiplies gradients, and whether to
// skip the update; also the start of a step.
//
//   grad_norm = sqrt(sum of g^2);  clip_scale = min(1, grad_clip / grad_norm)
//
// Layout: flat fp32 gradients; an exact sum of squares, see kernels/device/exact_sum.h. Integers
// are added, by atomics at the end, so the bits depend on no order.
//
// Roofline: 4 bytes and 22 instructions an element. On an H200 the instructions bind: 193 us for
// 124 million elements, where the bytes would take 104. A thread's sums hold the window of
// exponents that almost all gradients of a model share. It adds the rare others by atomics.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfMultiprocessor = 4;
constexpr int kLoads = 4;                             // of 16 bytes, in flight at a time
constexpr int kSharedDigits = ExactSum::kDigits + 1;  // and the terms that are not finite

using Digit = unsigned long long;  // as atomicAdd wants it; negative numbers wrap around

// Adds value * 2^(place + ExactSum::kLowestBit) to digits in shared memory.
__device__ __forceinline__ void add_atomically(Digit* digits, uint64_t value, int place) {
  const int first = place / ExactSum::kDigitBits, shift = place % ExactSum::kDigitBits;
  const uint64_t low = value << shift, high = value >> 1 >> (63 - shift);
  atomicAdd(&digits[first], Digit{low & ExactSum::kDigitMask});
  atomicAdd(&digits[first + 1], Digit{low >> ExactSum::kDigitBits});
  atomicAdd(&digits[first + 2], Digit{high});
}

// Sums squares of floats as a number of units of 2^(place + ExactSum::kLowestBit). The square of a
// float with exponent field e is its 24-bit mantissa squared, at place 2 e. Places within kWindow
// of the unit's go here, into one of two sums of 96 bits, one 32 places above the other. 2^17 terms
// stay below 2^96.
class WindowSum {
 public:
  static constexpr int kWindow = 64, kHeadroom = 16;
  static constexpr int64_t kMostTerms = int64_t{1} << 17;

  // Whether no window has been chosen yet.
  __device__ __forceinline__ bool is_new() const { return place_ == kNowhere; }
  // Chooses it for terms up to `largest` and a little above.
  __device__ __forceinline__ void choose(float largest) {
    if (largest > 0) move(place_of(__float_as_uint(largest)));
  }

  // Adds g^2 and returns true, or returns false if g needs add_outlier(). Has no branch.
  __device__ __forceinline__ bool add(float g) {
    const uint32_t bits = __float_as_uint(g);
    const int place = place_of(bits);
    const bool inside = static_cast<unsigned>(place - place_) < kWindow;
    add_inside(inside ? (bits & 0x7fffff) | 0x800000 : 0, place);
    return inside || (bits & 0x7fffffff) == 0;
  }

  // For numbers that are not finite, subnormal numbers, and what lies below the window or above,
  // which then moves up.
  __device__ __forceinline__ void add_outlier(float g, Digit* digits) {
    const uint32_t bits = __float_as_uint(g);
    const bool subnormal = (bits & 0x7f800000) == 0;
    const uint32_t mantissa = (bits & 0x7fffff) | (subnormal ? 0 : 0x800000);
    const int place = subnormal ? kLeastPlace : place_of(bits);
    if (place == kNotFinite) {
      atomicAdd(&digits[ExactSum::kDigits], Digit{1});
    } else if (place < place_) {
      add_atomically(digits, static_cast<uint64_t>(mantissa) * mantissa, place);
    } else {
      if (place >= place_ + kWindow) {
        flush(digits);
        move(place);
      }
      add_inside(mantissa, place);
    }
  }

  // Adds the sums of a warp's lanes. All lanes call it.
  __device__ __forceinline__ void flush_warp(Digit* digits) {
    const int first = place_ / ExactSum::kDigitBits;
    uint32_t words[kWords];
    to_words(words);
    for (unsigned left = kAllLanes; left != 0;) {
      const int leading = __shfl_sync(kAllLanes, first, __ffs(static_cast<int>(left)) - 1);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const Digit sum = warp_reduce(first == leading ? Digit{words[i]} : Digit{0}, Sum());
        if (threadIdx.x % kWarp == 0 && sum != 0) atomicAdd(&digits[leading + i], sum);
      }
      left &= ~__ballot_sync(kAllLanes, first == leading);
    }
  }

 private:
  static constexpr int kWords = 5;
  static constexpr int kLeastPlace = 2, kNotFinite = 2 * 255;  // of exponent fields 1 and 255
  static constexpr int kNowhere = -1024;                       // no place is in this window

  static __device__ __forceinline__ int place_of(uint32_t bits) {
    return static_cast<int>(bits >> 22 & 0x1fe);
  }

  __device__ __forceinline__ void move(int place) {
    place_ = min(max(place - (kWindow - kHeadroom), kLeastPlace), kNotFinite - kWindow);
  }

  __device__ __forceinline__ void add_inside(uint32_t mantissa, int place) {
    ptx::add_shifted(low_, high_, static_cast<uint64_t>(mantissa) * mantissa, place - place_);
  }

  __device__ __forceinline__ void flush(Digit* digits) {
    uint32_t words[kWords];
    to_words(words);
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      if (words[i] != 0) atomicAdd(&digits[place_ / ExactSum::kDigitBits + i], Digit{words[i]});
#pragma unroll
    for (int i = 0; i < 3; ++i) low_[i] = high_[i] = 0;
  }

  // As digits from place_ / kDigitBits on.
  __device__ __forceinline__ void to_words(uint32_t* words) const {
    uint32_t sum[4] = {low_[0], 0, 0, 0};
    uint64_t carried = 0;
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      carried += uint64_t{i < 3 ? low_[i] : 0} + high_[i - 1];
      sum[i] = static_cast<uint32_t>(carried);
      carried >>= 32;
    }
    const int shift = place_ % ExactSum::kDigitBits;
    uint32_t below = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t word = i < 4 ? sum[i] : 0;
      words[i] = static_cast<uint32_t>((uint64_t{word} << 32 | below) << shift >> 32);
      below = word;
    }
  }

  uint32_t low_[3] = {}, high_[3] = {};
  int place_ = kNowhere;
};

template <int kN>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    square_sum_kernel(const float* gradients, int64_t count, ExactSum* squares) {
  auto* digits = reinterpret_cast<Digit*>(ptx::shared_memory());
  if (threadIdx.x < kSharedDigits) digits[threadIdx.x] = 0;
  __syncthreads();
  WindowSum sum;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kN;
  int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kN;
  for (; at + (kLoads - 1) * step + kN <= count; at += kLoads * step) {
    Vec<float, kN> loaded[kLoads];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) loaded[l] = Vec<float, kN>::load(gradients + at + l * step);
    if (sum.is_new()) {
      float largest = 0;
#pragma unroll
      for (int l = 0; l < kLoads * kN; ++l)
        largest = fmaxf(largest, fabsf(loaded[l / kN].at[l % kN]));
      sum.choose(largest);
    }
    unsigned outliers = 0;
#pragma unroll
    for (int l = 0; l < kLoads; ++l)
#pragma unroll
      for (int i = 0; i < kN; ++i) outliers |= sum.add(loaded[l].at[i]) ? 0 : 1u << (l * kN + i);
    for (; outliers != 0; outliers &= outliers - 1) {
      const int j = __ffs(static_cast<int>(outliers)) - 1;
      sum.add_outlier(gradients[at + j / kN * step + j % kN], digits);
    }
  }
  for (; at < count; at += step)
    for (int64_t i = at; i < min(at + kN, count); ++i)
      if (!sum.add(gradients[i])) sum.add_outlier(gradients[i], digits);
  sum.flush_warp(digits);
  __syncthreads();
  if (threadIdx.x != 0) return;
  ExactSum total;
  for (int i = 0; i < ExactSum::kDigits; ++i) total.digits[i] = static_cast<int64_t>(digits[i]);
  total.not_finite = static_cast<int64_t>(digits[ExactSum::kDigits]);
  total.carry();  // so that thousands of blocks and ranks can be added
  for (int i = 0; i < ExactSum::kDigits; ++i) {
    if (total.digits[i] != 0)
      atomicAdd(reinterpret_cast<Digit*>(&squares->digits[i]), static_cast<Digit>(total.digits[i]));
  }
  if (total.not_finite != 0)
    atomicAdd(reinterpret_cast<Digit*>(&squares->not_finite), static_cast<Digit>(total.not_finite));
}

__global__ void clip_scale_kernel(double grad_clip, StepResults* results) {
  const double norm = sqrt(results->squares.rounded());
  results->grad_norm = norm;
  results->clip_scale = grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1.0;
  results->skip = std::isfinite(norm) && std::isfinite(results->loss) ? 0 : 1;
}

__global__ void begin_step_kernel(StepResults* results, const StepInputs* inputs) {
  results->loss = inputs->first_loss;
  results->stop_votes = inputs->stop_vote;
  results->squares = {};
}

template <int kN>
void launch_square_sum(const SquareSum& args, const Context& context) {
  const int64_t count = args.gradients.elements();
  const int64_t most = int64_t{kBlocksOfMultiprocessor} * context.multiprocessors;
  const int64_t blocks = std::min(most, ceil_div(count, kThreads * kN));
  LATHE_CHECK(ceil_div(count, blocks * kThreads) + kN <= WindowSum::kMostTerms);
  launch(square_sum_kernel<kN>,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kSharedDigits * sizeof(Digit)},
         context.stream, data<float>(args.gradients), count, &args.results->squares);
}

}  // namespace

template <typename T>
void compute(const SquareSum& args, const Context& context, const Tensor&) {
  const int64_t elements = args.gradients.elements();
  check_vector(args.gradients, DType::fp32, elements, "gradients");
  LATHE_CHECK(args.results != nullptr);
  if (elements == 0) return;
  if (can_vectorize(0, data<float>(args.gradients))) {
    launch_square_sum<kVec<float>>(args, context);
  } else {
    launch_square_sum<1>(args, context);
  }
}

template <typename T>
void compute(const ClipScale& args, const Context& context, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.grad_clip >= 0);
  launch(clip_scale_kernel, {dim3(1), dim3(1)}, context.stream, args.grad_clip, args.results);
}

template <typename T>
void compute(const BeginStep& args, const Context& context, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.inputs != nullptr);
  launch(begin_step_kernel, {dim3(1), dim3(1)}, context.stream, args.results, args.inputs);
}

LATHE_CUDA_OPERATION(SquareSum)
LATHE_CUDA_OPERATION(ClipScale)
LATHE_CUDA_OPERATION(BeginStep)

}  // namespace lathe::cuda
