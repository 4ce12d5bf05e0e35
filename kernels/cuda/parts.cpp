#include "kernels/cuda/parts.h"

namespace lathe::cuda {

OpCost cost(const MatmulArgs& args) {
  const auto m = static_cast<double>(args.m), n = static_cast<double>(args.n);
  const auto k = static_cast<double>(args.k);
  const auto input = static_cast<double>(size_of(args.input));
  const auto output = static_cast<double>(size_of(args.output));
  const double times = args.accumulate ? 2 : 1;
  double bytes = (m * k + k * n) * input + times * m * n * output;
  if (args.bias != nullptr) bytes += n * output;
  return {2 * m * n * k, bytes};
}

void run_part(const Context& context, std::string_view name, const MatmulArgs& args,
              const Tensor& workspace) {
  begin_part(context, name, {args.m, args.k, args.n}, cost(args));
  context.matmul->run(args, workspace, context.stream);
}

}  // namespace lathe::cuda
