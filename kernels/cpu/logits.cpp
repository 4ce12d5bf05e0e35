#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sums.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

// A few rows against the whole vocabulary: limited by reading wte, which is read once.
template <typename T>
void compute(const Logits& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t rows = rows_of(args.x_nc), channels = columns_of(args.x_nc);
  check_matrix(args.x_nc, dtype_of<T>, rows, channels, "x");
  check_matrix(args.wte_vc, dtype_of<T>, rows_of(args.wte_vc), channels, "wte");
  check_matrix(args.logits_nv, dtype_of<A>, rows, args.vocab_size, "logits");
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= rows_of(args.wte_vc));
  const T *x = args.x_nc.as<T>(), *wte = args.wte_vc.as<T>();
  A* out = args.logits_nv.as<A>();
  const int64_t vocabulary = args.vocab_size;
  constexpr int64_t kBlock = 64;
  parallel_for(ceil_div(vocabulary, kBlock), vocabulary * channels, [&](int64_t block) {
    for (int64_t v = block * kBlock; v < std::min(vocabulary, (block + 1) * kBlock); ++v) {
      const T* weight = wte + v * channels;
      for (int64_t n = 0; n < rows; ++n) {
        const T* row = x + n * channels;
        out[n * vocabulary + v] = sum_of<A>(channels, [row, weight](int64_t c) {
          return static_cast<A>(row[c]) * static_cast<A>(weight[c]);
        });
      }
    }
  });
}

LATHE_CPU_OPERATION(Logits)

}  // namespace lathe::cpu
