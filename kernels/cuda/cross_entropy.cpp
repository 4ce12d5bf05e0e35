// Linear + cross-entropy over chunks of rows, so that the logits of the whole batch never exist at
// once: matrix products (matmul.cpp) around the row kernel of cross_entropy_rows.cu.
//
//   logits = x wte^T          [r, V] fp32, in the workspace        2 r V C FLOPs
//   losses, dlogits           in place: row n of dlogits, in T, starts where row n of logits starts
//   dx = dlogits wte          [r, C]                               2 r V C FLOPs
//   dwte (+)= dlogits^T x     [V, C] fp32                          2 r V C FLOPs
//
// Roofline: the products are compute-bound if r and C are in the hundreds. Each chunk reads and
// writes dwte once (8 V C bytes against 2 r V C FLOPs), so chunks are as long as logits_at_once
// allows. The row kernel moves 4 + sizeof(T) bytes per logit if a row fits into shared memory.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/parts.h"
#include "kernels/device/arena.h"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int64_t kRowUnit = 128;                    // of a product's tiles
constexpr int64_t kLogitsAtOnce = int64_t{1} << 26;  // unless the call gives a number

template <typename T>
struct Call {
  const LinearCrossEntropy& args;
  int64_t rows, channels, vocabulary;  // vocabulary with padding
  int64_t chunk;                       // rows per chunk; the last may be shorter

  explicit Call(const LinearCrossEntropy& of)
      : args(of),
        rows(rows_of(of.x_nc)),
        channels(columns_of(of.x_nc)),
        vocabulary(rows_of(of.wte_vc)) {
    const int64_t logits = args.logits_at_once > 0 ? args.logits_at_once : kLogitsAtOnce;
    const int64_t most = std::max(kRowUnit, logits / std::max<int64_t>(1, vocabulary));
    const int64_t chunks = even_chunks(std::max<int64_t>(1, ceil_div(rows, most)));
    chunk = std::min(rows, round_up(ceil_div(rows, chunks), kRowUnit));
  }
  // `least`, or one more if that makes all chunks equally long: their products then share one plan.
  int64_t even_chunks(int64_t least) const {
    for (int64_t count = least; count <= least + 1; ++count)
      if (rows % (count * kRowUnit) == 0) return count;
    return least;
  }
  size_t logits_bytes() const {
    return round_up(static_cast<size_t>(chunk * vocabulary) * sizeof(float), kArenaAlignment);
  }
  const T* x(int64_t first) const { return data<T>(args.x_nc) + first * channels; }
  // In elements of T.
  int64_t ld_dlogits() const {
    return vocabulary * static_cast<int64_t>(sizeof(float) / sizeof(T));
  }

  MatmulArgs logits_product(float* logits, int64_t first, int64_t count) const {
    MatmulArgs product;
    product.m = count, product.n = vocabulary, product.k = channels;
    product.a = x(first), product.b = args.wte_vc.data, product.c = logits;
    product.transpose_b = true;
    product.input = kernel_dtype<T>, product.output = DType::fp32;
    return product;
  }
  MatmulArgs dx_product(const float* dlogits, int64_t first, int64_t count) const {
    MatmulArgs product;
    product.m = count, product.n = channels, product.k = vocabulary;
    product.a = dlogits, product.lda = ld_dlogits();
    product.b = args.wte_vc.data, product.c = data<T>(args.dx_nc) + first * channels;
    product.input = product.output = kernel_dtype<T>;
    return product;
  }
  MatmulArgs dwte_product(const float* dlogits, int64_t first, int64_t count) const {
    MatmulArgs product;
    product.m = vocabulary, product.n = channels, product.k = count;
    product.a = dlogits, product.lda = ld_dlogits(), product.transpose_a = true;
    product.b = x(first), product.c = args.dwte_vc.data;
    product.accumulate = args.accumulate || first > 0;
    product.input = kernel_dtype<T>, product.output = DType::fp32;
    return product;
  }
  // Of the row kernel: logits are read, and replaced by their gradient if one is computed.
  OpCost rows_cost(int64_t count) const {
    const size_t logit = sizeof(float) + (args.dx_nc ? sizeof(T) : 0);
    return {0, static_cast<double>(count * vocabulary) * static_cast<double>(logit) +
                   static_cast<double>(count) * (sizeof(float) + sizeof(int32_t))};
  }
};

// Targets are in device memory, so they are not checked here: cross_entropy_rows sets rows whose
// target is outside the vocabulary to NaN.
template <typename T>
void check_arguments(const LinearCrossEntropy& args, const Call<T>& call) {
  constexpr DType kType = kernel_dtype<T>;
  check_matrix(args.x_nc, kType, call.rows, call.channels, "x");
  check_matrix(args.wte_vc, kType, call.vocabulary, call.channels, "wte");
  check_vector(args.losses_n, DType::fp32, call.rows, "losses");
  check_vector(args.targets_n, DType::int32, call.rows, "targets");
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= call.vocabulary, "{} of {}",
              args.vocab_size, call.vocabulary);
  LATHE_CHECK(args.results != nullptr);
  LATHE_CHECK(static_cast<bool>(args.dx_nc) == static_cast<bool>(args.dwte_vc));
  if (!args.dx_nc) return;
  check_matrix(args.dx_nc, kType, call.rows, call.channels, "dx");
  check_matrix(args.dwte_vc, DType::fp32, call.vocabulary, call.channels, "dwte");
}

}  // namespace

template <typename T>
size_t workspace_of(const LinearCrossEntropy& args, const Context&) {
  return Call<T>(args).logits_bytes() + Matmul::kWorkspaceBytes;
}

template <typename T>
void compute(const LinearCrossEntropy& args, const Context& context, const Tensor& workspace) {
  const Call<T> call(args);
  check_arguments(args, call);
  check_workspace(workspace, workspace_of<T>(args, context));
  auto* const logits = static_cast<float*>(workspace.data);
  const auto own = static_cast<int64_t>(call.logits_bytes());
  const Tensor rest = workspace.rows(own, workspace.shape[0] - own);
  const bool gradient = static_cast<bool>(args.dx_nc);
  for (int64_t first = 0; first < call.rows; first += call.chunk) {
    const int64_t count = std::min(call.chunk, call.rows - first);
    run_part(context, "logits", call.logits_product(logits, first, count), rest);
    begin_part(context, "softmax rows", {count, call.vocabulary}, call.rows_cost(count));
    cross_entropy_rows<T>(
        {logits, data<float>(args.losses_n) + first, data<int32_t>(args.targets_n) + first, count,
         args.vocab_size, call.vocabulary, args.scale, gradient},
        context);
    if (!gradient) continue;
    run_part(context, "dx", call.dx_product(logits, first, count), rest);
    run_part(context, "dwte", call.dwte_product(logits, first, count), rest);
  }
  const auto loss_bytes = static_cast<double>(args.losses_n.bytes());
  begin_part(context, "sum of losses", {call.rows}, {0, loss_bytes});
  add_losses(data<float>(args.losses_n), call.rows, args.scale, args.results, context.stream);
}

LATHE_CUDA_OPERATION(LinearCrossEntropy)

}  // namespace lathe::cuda
