#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"

namespace lathe::cpu {

namespace {

// The sum of values[0 .. count) as a binary tree, whose shape depends on count alone. In place.
double tree_sum(double* values, int64_t count) {
  if (count == 0) return 0;
  while (count > 1) {
    for (int64_t i = 0; i < count / 2; ++i) values[i] = values[2 * i] + values[2 * i + 1];
    if (count % 2) values[count / 2] = values[count - 1];
    count = (count + 1) / 2;
  }
  return values[0];
}

// In double, over 32 lanes in fixed order. One flat loop: through sum_of, GCC 12 converts element
// by element, at a third of the memory bandwidth.
template <typename A>
double sum_of_squares(const A* values, int64_t count) {
  constexpr int kWide = 32, kLine = 64 / sizeof(A), kAhead = 8192 / sizeof(A);
  double lanes[kWide] = {};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) {
    // A pure read waits for memory, and the hardware prefetches only to the end of a page.
    // Prefetching lines two pages ahead into L2 made it 1.5 to 2 times as fast.
    for (int line = 0; line < kWide; line += kLine)
      __builtin_prefetch(values + i + line + kAhead, 0, 2);
#pragma omp simd
    for (int j = 0; j < kWide; ++j) {
      const double x = static_cast<double>(values[i + j]);
      lanes[j] += x * x;
    }
  }
  for (int j = 0; i < count; ++i, ++j) {
    lanes[j] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  for (int width = kWide / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

}  // namespace

// The squares are summed in double: memory is the limit anyway, and large float gradients do not
// overflow.
template <typename T>
void compute(const SquareSums& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t elements = args.gradients.elements(), blocks = norm_blocks(elements);
  check_vector(args.gradients, dtype_of<A>, elements, "gradients");
  check_vector(args.sums, DType::fp64, blocks, "sums");
  const A* gradients = args.gradients.as<A>();
  double* sums = args.sums.as<double>();
  parallel_for(blocks, elements, [&](int64_t block) {
    const A* g = gradients + block * kNormBlock;
    sums[block] = sum_of_squares(g, std::min(kNormBlock, elements - block * kNormBlock));
  });
}

template <typename T>
void compute(const ClipScale& args, MatmulContext&, const Tensor&) {
  check_vector(args.sums, DType::fp64, args.sums.elements(), "sums");
  LATHE_CHECK(args.results != nullptr && args.grad_clip >= 0);
  StepResults& results = *args.results;
  results.grad_norm = std::sqrt(tree_sum(args.sums.as<double>(), args.sums.elements()));
  const bool clips = args.grad_clip > 0 && results.grad_norm > args.grad_clip;
  results.clip_scale = clips ? args.grad_clip / results.grad_norm : 1.0;
  results.skip = std::isfinite(results.grad_norm) && std::isfinite(results.loss) ? 0 : 1;
}

template <typename T>
void compute(const BeginStep& args, MatmulContext&, const Tensor&) {
  LATHE_CHECK(args.results != nullptr && args.inputs != nullptr);
  args.results->loss = args.inputs->first_loss;
  args.results->stop_votes = args.inputs->stop_vote;
}

LATHE_CPU_OPERATION(BeginStep)
LATHE_CPU_OPERATION(SquareSums)
LATHE_CPU_OPERATION(ClipScale)

}  // namespace lathe::cpu
