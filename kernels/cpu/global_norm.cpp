#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

// Elements that are summed in one window of exponents.
constexpr int64_t kChunk = 1024;
constexpr int kWide = 8;  // sums side by side, for SIMD
constexpr int kPerLane = kChunk / kWide;
constexpr int kAhead = 2048;  // floats to prefetch ahead, into L2

template <typename A>
void add_one_by_one(ExactSum& sum, const A* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = static_cast<double>(values[i]);
    sum.add(x * x);
  }
}

// Adds the squares of kChunk floats, all below 2^top. Adding 1.5 * 2^(52 + u) to a square and
// subtracting it again rounds the square to a multiple of 2^u (Demmel and Hida, "Accurate and
// efficient floating point summation", 2004). A lane of slice k sums such multiples, which is
// exact, and leaves the rest of the square to slice k + 1. Returns false, and adds nothing, if the
// last slice leaves a rest.
template <int kSlices>
bool add_slices(ExactSum& sum, const float* values, int top) {
  static_assert(kPerLane <= 128);
  // The units of the slices. 128 squares below 2^(2 top) stay below 2^(51 + unit), as do 128 rests
  // of at most half a unit of the slice before.
  int unit[kSlices];
  unit[0] = 2 * top - 43;
  for (int k = 1; k < kSlices; ++k) unit[k] = unit[k - 1] - 44;
  double base[kSlices], sums[kSlices][kWide];
  uint64_t lost[kWide] = {};
  for (int k = 0; k < kSlices; ++k) {
    base[k] = 1.5 * power_of_two(52 + unit[k]);
    for (double& lane : sums[k]) lane = base[k];
  }
  for (int64_t i = 0; i < kChunk; i += kWide) {
    // A pure read waits for memory, and the hardware prefetches only to the end of a page.
    __builtin_prefetch(values + i + kAhead, 0, 2);
#pragma omp simd
    for (int j = 0; j < kWide; ++j) {
      const double x = static_cast<double>(values[i + j]);
      double rest = x * x;
#pragma GCC unroll 3
      for (int k = 0; k < kSlices; ++k) {
        const double before = sums[k][j];
        sums[k][j] += rest;
        rest -= sums[k][j] - before;
      }
      lost[j] |= std::bit_cast<uint64_t>(rest);  // +0 if there is no rest
    }
  }
  for (const uint64_t lane : lost)
    if (lane != 0) return false;
  for (int k = 0; k < kSlices; ++k) {
    int64_t units = 0;  // below 2^56
    for (const double lane : sums[k])
      units += static_cast<int64_t>((lane - base[k]) * power_of_two(-unit[k]));
    sum.add(units, unit[k]);
  }
  return true;
}

// Two slices hold squares that differ by a factor of up to 2^40, which almost all chunks do.
void add_chunk(ExactSum& sum, const float* values) {
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < kChunk; ++i)
    largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  if (largest == 0) return;
  const int field = static_cast<int>(largest >> 23), top = field - 126;
  const bool ordinary = field > 0 && field < 255;
  if (ordinary && add_slices<2>(sum, values, top)) return;
  if (ordinary && add_slices<3>(sum, values, top)) return;
  add_one_by_one(sum, values, kChunk);
}

template <typename A>
ExactSum sum_of_squares(const A* values, int64_t count) {
  ExactSum sum;
  int64_t i = 0;
  if constexpr (std::is_same_v<A, float>)
    for (; i + kChunk <= count; i += kChunk) add_chunk(sum, values + i);
  add_one_by_one(sum, values + i, count - i);
  sum.carry();
  return sum;
}

}  // namespace

template <typename T>
void compute(const SquareSum& args, MatmulContext&, const Tensor&) {
  constexpr int64_t kAtOnce = 64 * kChunk;
  using A = Accumulator<T>;
  const int64_t elements = args.gradients.elements();
  check_vector(args.gradients, dtype_of<A>, elements, "gradients");
  LATHE_CHECK(args.results != nullptr);
  const A* gradients = args.gradients.as<A>();
  ExactSum& squares = args.results->squares;
  parallel_for(ceil_div(elements, kAtOnce), elements, [&](int64_t i) {
    const int64_t first = i * kAtOnce;
    const ExactSum sum = sum_of_squares(gradients + first, std::min(kAtOnce, elements - first));
#pragma omp critical(lathe_square_sum)
    squares.add(sum);
  });
}

template <typename T>
void compute(const ClipScale& args, MatmulContext&, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.grad_clip >= 0);
  StepResults& results = *args.results;
  results.grad_norm = std::sqrt(results.squares.rounded());
  const bool clips = args.grad_clip > 0 && results.grad_norm > args.grad_clip;
  results.clip_scale = clips ? args.grad_clip / results.grad_norm : 1.0;
  results.skip = std::isfinite(results.grad_norm) && std::isfinite(results.loss) ? 0 : 1;
}

template <typename T>
void compute(const BeginStep& args, MatmulContext&, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.inputs != nullptr);
  args.results->loss = args.inputs->first_loss;
  args.results->stop_votes = args.inputs->stop_vote;
  args.results->squares = {};
}

LATHE_CPU_OPERATION(BeginStep)
LATHE_CPU_OPERATION(SquareSum)
LATHE_CPU_OPERATION(ClipScale)

}  // namespace lathe::cpu
