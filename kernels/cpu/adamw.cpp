#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

// The factors of an update, in the accumulator type.
template <typename A>
struct Update {
  A clip_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  A correction1, correction2;  // 1 / (1 - beta^t)
  A eps, learning_rate;

  explicit Update(const AdamW& args)
      : clip_scale(static_cast<A>(args.results->clip_scale)),
        beta1(args.beta1),
        one_minus_beta1(A(1) - beta1),
        beta2(args.beta2),
        one_minus_beta2(A(1) - beta2),
        eps(args.eps),
        learning_rate(args.inputs->learning_rate) {
    const double t = static_cast<double>(args.results->updates + 1);
    correction1 = static_cast<A>(1 / (1 - std::pow(static_cast<double>(args.beta1), t)));
    correction2 = static_cast<A>(1 / (1 - std::pow(static_cast<double>(args.beta2), t)));
  }
};

template <typename T>
struct Pointers {
  using A = Accumulator<T>;
  A *masters, *m, *v;
  const A* gradients;
  T* weights;  // or null
};

// Elements [begin, end), which share a weight decay. Rounds weights to nearest if kRound.
template <bool kRound, typename T>
void update_run(const Pointers<T>& p, const Update<Accumulator<T>>& u, Accumulator<T> decay,
                int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  A* __restrict w = p.masters;
  A* __restrict m = p.m;
  A* __restrict v = p.v;
  const A* __restrict gradients = p.gradients;
  T* __restrict weights = p.weights;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const A g = gradients[i] * u.clip_scale;
    m[i] = u.beta1 * m[i] + u.one_minus_beta1 * g;
    v[i] = u.beta2 * v[i] + u.one_minus_beta2 * (g * g);
    const A step = m[i] * u.correction1 / (std::sqrt(v[i] * u.correction2) + u.eps);
    w[i] -= u.learning_rate * (step + decay * w[i]);
    if constexpr (kRound) store(weights[i], w[i]);
  }
}

void check_segments(const AdamW& args, int64_t elements) {
  LATHE_CHECK(args.segments != nullptr || args.segment_count == 0);
  int64_t end = 0;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const OptimizerSegment& segment = args.segments[s];
    LATHE_CHECK(segment.begin >= end && segment.end >= segment.begin && segment.end <= elements,
                "segment {}: {} .. {} of {}", s, segment.begin, segment.end, elements);
    end = segment.end;
  }
}

}  // namespace

template <typename T>
void compute(const AdamW& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t elements = args.masters.elements();
  check_vector(args.masters, dtype_of<A>, elements, "masters");
  check_vector(args.m, dtype_of<A>, elements, "m");
  check_vector(args.v, dtype_of<A>, elements, "v");
  check_vector(args.gradients, dtype_of<A>, elements, "gradients");
  if (args.weights) check_vector(args.weights, dtype_of<T>, elements, "weights");
  LATHE_CHECK(!args.stochastic_rounding || args.weights.dtype == DType::bf16,
              "stochastic rounding to {}", name_of(args.weights.dtype));
  LATHE_CHECK(args.inputs != nullptr && args.results != nullptr);
  check_segments(args, elements);
  if (args.results->skip) return;
  const Update<A> update(args);
  const RandomRounding rounding{args.inputs->seed,
                                static_cast<uint32_t>(args.results->updates + 1)};
  const Pointers<T> pointers{args.masters.as<A>(), args.m.as<A>(), args.v.as<A>(),
                             args.gradients.as<A>(), args.weights.as<T>()};
  constexpr int64_t kChunk = 16384;
  parallel_for(ceil_div(elements, kChunk), elements, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(elements, begin + kChunk);
    const OptimizerSegment* last = args.segments + args.segment_count;
    const OptimizerSegment* s = std::upper_bound(
        args.segments, last, begin,
        [](int64_t e, const OptimizerSegment& segment) { return e < segment.end; });
    for (; s < last && s->begin < end; ++s) {
      const int64_t from = std::max(begin, s->begin), to = std::min(end, s->end);
      const A decay = s->weight_decay;
      if (pointers.weights && !args.stochastic_rounding)
        update_run<true>(pointers, update, decay, from, to);
      else
        update_run<false>(pointers, update, decay, from, to);
      if constexpr (std::is_same_v<T, bf16>)
        if (args.stochastic_rounding)
          rounding.round(pointers.masters, from, to, s->shift, pointers.weights);
    }
  });
  if (args.last) ++args.results->updates;
}

LATHE_CPU_OPERATION(AdamW)

}  // namespace lathe::cpu
