#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

constexpr int64_t kChunk = 16384;

// double to bf16 goes through float and may round twice; training never does this.
template <typename To, typename From, bool kAccumulate>
void cast_elements(const Cast& args) {
  const From* source = args.source.as<From>();
  To* destination = args.destination.as<To>();
  const int64_t elements = args.source.elements();
  parallel_for(ceil_div(elements, kChunk), elements, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(elements, begin + kChunk);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      using A = Accumulator<To>;
      if constexpr (kAccumulate) {
        destination[i] += static_cast<A>(source[i]);
      } else {
        store(destination[i], static_cast<A>(source[i]));
      }
    }
  });
}

void cast_stochastically(const Cast& args) {
  const RandomRounding rounding{args.rounding->seed, args.rounding->step};
  const float* source = args.source.as<float>();
  bf16* destination = args.destination.as<bf16>();
  const int64_t elements = args.source.elements();
  parallel_for(ceil_div(elements, kChunk), elements, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(elements, begin + kChunk);
    rounding.round(source, begin, end, args.first_element, destination);
  });
}

template <typename From>
void cast_from(const Cast& args) {
  switch (args.destination.dtype) {
    case DType::fp32:
      return args.accumulate ? cast_elements<float, From, true>(args)
                             : cast_elements<float, From, false>(args);
    case DType::fp64:
      return args.accumulate ? cast_elements<double, From, true>(args)
                             : cast_elements<double, From, false>(args);
    case DType::bf16:
      LATHE_CHECK(!args.accumulate, "sums in bf16");
      return cast_elements<bf16, From, false>(args);
    default:
      LATHE_CHECK(false, "cast to {}", name_of(args.destination.dtype));
  }
}

}  // namespace

template <typename T>
void compute(const Cast& args, MatmulContext&, const Tensor&) {
  check_vector(args.source, args.source.dtype, args.destination.elements(), "source");
  check_vector(args.destination, args.destination.dtype, args.source.elements(), "destination");
  if (args.rounding) return cast_stochastically(args);
  switch (args.source.dtype) {
    case DType::fp32:
      return cast_from<float>(args);
    case DType::bf16:
      return cast_from<bf16>(args);
    case DType::fp64:
      return cast_from<double>(args);
    default:
      LATHE_CHECK(false, "cast from {}", name_of(args.source.dtype));
  }
}

LATHE_CPU_OPERATION(Cast)

}  // namespace lathe::cpu
