#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

constexpr int64_t kChunk = 4096;

// out[i] = function(i) for all elements, chunk by chunk.
template <typename T, typename Function>
void map_elements(int64_t elements, T* out, const Function& function) {
  parallel_for(ceil_div(elements, kChunk), elements, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(elements, begin + kChunk);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) store(out[i], function(i));
  });
}

}  // namespace

template <typename T>
void compute(const GeluForward& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t elements = args.x.elements();
  check_vector(args.x, dtype_of<T>, elements, "x");
  check_vector(args.y, dtype_of<T>, elements, "y");
  LATHE_CHECK(args.gelu != Gelu::none);
  const T* x = args.x.as<T>();
  T* y = args.y.as<T>();
  if (args.gelu == Gelu::tanh)
    map_elements(elements, y, [x](int64_t i) { return gelu_tanh(static_cast<A>(x[i])); });
  else
    map_elements(elements, y, [x](int64_t i) { return gelu_exact(static_cast<A>(x[i])); });
}

template <typename T>
void compute(const GeluBackward& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t elements = args.x.elements();
  check_vector(args.x, dtype_of<T>, elements, "x");
  check_vector(args.dy, dtype_of<T>, elements, "dy");
  check_vector(args.dx, dtype_of<T>, elements, "dx");
  if (args.dx_sums_i) check_vector(args.dx_sums_i, dtype_of<A>, columns_of(args.dx), "dx_sums");
  LATHE_CHECK(args.gelu != Gelu::none);
  const T *x = args.x.as<T>(), *dy = args.dy.as<T>();
  T* dx = args.dx.as<T>();
  if (args.gelu == Gelu::tanh) {
    map_elements(elements, dx, [x, dy](int64_t i) {
      return static_cast<A>(dy[i]) * gelu_tanh_grad(static_cast<A>(x[i]));
    });
  } else {
    map_elements(elements, dx, [x, dy](int64_t i) {
      return static_cast<A>(dy[i]) * gelu_exact_grad(static_cast<A>(x[i]));
    });
  }
  if (args.dx_sums_i)
    column_sums(dx, rows_of(args.dx), columns_of(args.dx), args.accumulate, args.dx_sums_i.as<A>());
}

LATHE_CPU_OPERATION(GeluForward)
LATHE_CPU_OPERATION(GeluBackward)

}  // namespace lathe::cpu
