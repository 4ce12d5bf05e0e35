// Finishes a row segment of a product whose sums are complete; shared by every implementation.
#pragma once

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vecmath.h"

namespace lathe::cpu {

template <Activation kind, typename T>
inline T activate(T x) {
  if constexpr (kind == Activation::gelu_tanh) return gelu_tanh(x);
  if constexpr (kind == Activation::gelu_exact) return gelu_exact(x);
  return x;
}

// c[i] = activation(z[i]), where the product has already rounded z to T.
template <Activation kind, typename T>
inline void activate_row(const T* z, T* c, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    store(c[i], activate<kind>(static_cast<Accumulator<T>>(z[i])));
}
template <typename T>
inline void activate_row(Activation kind, const T* z, T* c, int64_t count) {
  if (kind == Activation::gelu_tanh) activate_row<Activation::gelu_tanh>(z, c, count);
  if (kind == Activation::gelu_exact) activate_row<Activation::gelu_exact>(z, c, count);
}

// Finishes columns col .. col + count of one row; `sum` holds the products' sums and is
// overwritten. `fixed`: the count if it is known at compile time, so that the loops unroll.
template <int64_t fixed = 0, typename T, typename TOut>
inline void finish_row(const MatmulArgs<T, TOut>& args, int64_t row, int64_t col, int64_t count,
                       Accumulator<T>* __restrict sum) {
  TOut* __restrict c = args.c + row * args.ldc + col;
  if (args.bias) {
    const T* __restrict bias = args.bias + col;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<Accumulator<T>>(bias[i]);
  }
  if constexpr (std::is_same_v<TOut, Accumulator<T>>) {
    if (args.accumulate) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) c[i] += sum[i];
      return;
    }
  }
  if constexpr (std::is_same_v<T, TOut>) {
    if (args.activation != Activation::none) {
      T* z = args.pre_activation ? args.pre_activation + row * args.ldc + col
                                 : args.c + row * args.ldc + col;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) store(z[i], sum[i]);
      activate_row(args.activation, z, args.c + row * args.ldc + col, count);
      return;
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(c[i], sum[i]);
}

}  // namespace lathe::cpu
