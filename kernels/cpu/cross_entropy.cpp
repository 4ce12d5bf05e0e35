#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sums.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

// Each chunk reads and writes all of dwte once more (twice 154 MB in a model of 124M), so chunks
// are as long as this limit on logits allows: 2^24 are 64 MiB in float.
constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;
constexpr int64_t kRowUnit = 32;

// The rows are cut into chunks of about the same length.
struct Chunks {
  int64_t rows, count;
  Chunks(int64_t total, int64_t vocabulary, int64_t logits_at_once) {
    const int64_t logits = logits_at_once > 0 ? logits_at_once : kLogitsAtOnce;
    const int64_t most = std::max(kRowUnit, logits / std::max<int64_t>(1, vocabulary));
    count = ceil_div(total, most);
    rows = count == 0 ? 0 : ceil_div(total, count);
    rows = std::min(total, round_up(rows, kRowUnit));
    count = rows == 0 ? 0 : ceil_div(total, rows);
  }
};

// The sizes and memory of one call; the matmuls' workspace follows the logits and their gradient.
template <typename T>
struct Call {
  using A = Accumulator<T>;
  int64_t rows, channels, vocabulary;  // vocabulary with padding
  Chunks chunks;
  A* logits = nullptr;   // [chunk rows, vocabulary]
  T* dlogits = nullptr;  // the same

  explicit Call(const LinearCrossEntropy& args)
      : rows(rows_of(args.x_nc)),
        channels(columns_of(args.x_nc)),
        vocabulary(rows_of(args.wte_vc)),
        chunks(rows, vocabulary, args.logits_at_once) {}
  size_t logits_bytes() const {
    return round_up(static_cast<size_t>(chunks.rows * vocabulary) * sizeof(A), kWorkspaceAlignment);
  }
  size_t dlogits_bytes(const LinearCrossEntropy& args) const {
    if (!is_planned(args.dx_nc)) return 0;
    return round_up(static_cast<size_t>(chunks.rows * vocabulary) * sizeof(T), kWorkspaceAlignment);
  }

  // logits = x wte^T for rows first .. first + count.
  MatmulArgs<T, A> logits_product(const LinearCrossEntropy& args, int64_t first,
                                  int64_t count) const {
    MatmulArgs<T, A> product;
    product.transpose_b = true;
    product.m = count, product.n = vocabulary, product.k = channels;
    product.a = args.x_nc.as<T>() + first * channels, product.lda = channels;
    product.b = args.wte_vc.as<T>(), product.ldb = channels;
    product.c = logits, product.ldc = vocabulary;
    return product;
  }
  // dx = dlogits wte
  MatmulArgs<T, T> dx_product(const LinearCrossEntropy& args, int64_t first, int64_t count) const {
    MatmulArgs<T, T> product;
    product.m = count, product.n = channels, product.k = vocabulary;
    product.a = dlogits, product.lda = vocabulary;
    product.b = args.wte_vc.as<T>(), product.ldb = channels;
    product.c = args.dx_nc.as<T>() + first * channels, product.ldc = channels;
    return product;
  }
  // dwte (+)= dlogits^T x
  MatmulArgs<T, A> dwte_product(const LinearCrossEntropy& args, int64_t first,
                                int64_t count) const {
    MatmulArgs<T, A> product;
    product.transpose_a = true;
    product.m = vocabulary, product.n = channels, product.k = count;
    product.a = dlogits, product.lda = vocabulary;
    product.b = args.x_nc.as<T>() + first * channels, product.ldb = channels;
    product.c = args.dwte_vc.as<A>(), product.ldc = channels;
    product.accumulate = args.accumulate || first > 0;
    return product;
  }
};

// If a logit is NaN, the largest may be any value, but the sum of exponentials is NaN all the same.
template <typename A>
A largest(const A* values, int64_t count) {
  A a[kLanes], b[kLanes], c[kLanes], d[kLanes];
  for (A* lanes : {a, b, c, d}) std::fill_n(lanes, kLanes, values[0]);
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    const A* next = values + i;
    // NOLINTBEGIN(clang-analyzer-core.UndefinedBinaryOperatorResult): fill_n has written them
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      a[j] = a[j] > next[j] ? a[j] : next[j];
      b[j] = b[j] > next[kLanes + j] ? b[j] : next[kLanes + j];
      c[j] = c[j] > next[2 * kLanes + j] ? c[j] : next[2 * kLanes + j];
      d[j] = d[j] > next[3 * kLanes + j] ? d[j] : next[3 * kLanes + j];
    }
    // NOLINTEND(clang-analyzer-core.UndefinedBinaryOperatorResult)
  }
  A top = values[0];
  for (const A* lanes : {a, b, c, d}) top = std::max(top, *std::max_element(lanes, lanes + kLanes));
  for (; i < count; ++i) top = std::max(top, values[i]);
  return top;
}

// top + log_sum is the logarithm of the sum of exp(value). They stay apart: if the values are
// large, rounding their sum would give every probability a relative error of up to an ulp of that
// sum.
template <typename A>
struct LogSumExp {
  A top, log_sum;
};

template <typename A>
LogSumExp<A> log_sum_exp(const A* values, int64_t count) {
  const A top = largest(values, count);
  const A sum = sum_of<A>(count, [values, top](int64_t i) { return fast_exp(values[i] - top); });
  return {top, std::log(sum)};
}

// dlogits = scale (softmax(logits) - [v == target]); 0 for padding.
template <typename T>
void logits_gradient(const Accumulator<T>* logits, const LogSumExp<Accumulator<T>>& total,
                     int32_t target, Accumulator<T> scale, int64_t vocab_size, int64_t vocabulary,
                     T* dlogits) {
  using A = Accumulator<T>;
  const A top = total.top, log_sum = total.log_sum;
#pragma omp simd
  for (int64_t v = 0; v < vocab_size; ++v)
    store(dlogits[v], fast_exp((logits[v] - top) - log_sum) * scale);
  std::fill(dlogits + vocab_size, dlogits + vocabulary, static_cast<T>(A(0)));
  store(dlogits[target], (fast_exp((logits[target] - top) - log_sum) - A(1)) * scale);
}

template <typename T>
void softmax_rows(const LinearCrossEntropy& args, const Call<T>& call, int64_t first,
                  int64_t count) {
  using A = Accumulator<T>;
  const int64_t vocabulary = call.vocabulary;
  const int32_t* targets = args.targets_n.as<int32_t>() + first;
  A* losses = args.losses_n.as<A>() + first;
  const A scale = static_cast<A>(args.scale);
  const bool gradient = static_cast<bool>(args.dx_nc);
  parallel_for(count, count * vocabulary, [&](int64_t n) {
    const A* row = call.logits + n * vocabulary;
    T* drow = gradient ? call.dlogits + n * vocabulary : nullptr;
    if (targets[n] < 0) {
      losses[n] = 0;
      if (gradient) std::fill_n(drow, vocabulary, static_cast<T>(A(0)));
      return;
    }
    const LogSumExp<A> total = log_sum_exp(row, args.vocab_size);
    losses[n] = (total.top - row[targets[n]]) + total.log_sum;
    if (gradient)
      logits_gradient<T>(row, total, targets[n], scale, args.vocab_size, vocabulary, drow);
  });
}

template <typename T>
void check_arguments(const LinearCrossEntropy& args, const Call<T>& call) {
  using A = Accumulator<T>;
  check_matrix(args.x_nc, dtype_of<T>, call.rows, call.channels, "x");
  check_matrix(args.wte_vc, dtype_of<T>, call.vocabulary, call.channels, "wte");
  check_vector(args.losses_n, dtype_of<A>, call.rows, "losses");
  check_vector(args.targets_n, DType::int32, call.rows, "targets");
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= call.vocabulary, "{} of {}",
              args.vocab_size, call.vocabulary);
  LATHE_CHECK(args.results != nullptr);
  LATHE_CHECK(static_cast<bool>(args.dx_nc) == static_cast<bool>(args.dwte_vc));
  if (args.dx_nc) {
    check_matrix(args.dx_nc, dtype_of<T>, call.rows, call.channels, "dx");
    check_matrix(args.dwte_vc, dtype_of<A>, call.vocabulary, call.channels, "dwte");
  }
  const int32_t* targets = args.targets_n.as<int32_t>();
  for (int64_t n = 0; n < call.rows; ++n)
    LATHE_CHECK(targets[n] < args.vocab_size, "target {} of {}", targets[n], args.vocab_size);
}

}  // namespace

template <typename T>
size_t workspace_of(const LinearCrossEntropy& args, MatmulContext& matmul) {
  const Call<T> call(args);
  size_t most = 0;
  for (int64_t first : {int64_t{0}, (call.chunks.count - 1) * call.chunks.rows}) {
    if (call.rows == 0) break;
    const int64_t count = std::min(call.chunks.rows, call.rows - first);
    most = std::max(most, matmul.workspace_bytes(call.logits_product(args, first, count)));
    if (!is_planned(args.dx_nc)) continue;
    most = std::max(most, matmul.workspace_bytes(call.dx_product(args, first, count)));
    most = std::max(most, matmul.workspace_bytes(call.dwte_product(args, first, count)));
  }
  return call.logits_bytes() + call.dlogits_bytes(args) + most;
}

template <typename T>
void compute(const LinearCrossEntropy& args, MatmulContext& matmul, const Tensor& workspace) {
  Call<T> call(args);
  check_arguments(args, call);
  const size_t own = call.logits_bytes() + call.dlogits_bytes(args);
  check_workspace(workspace, own);
  auto* memory = static_cast<char*>(workspace.data);
  call.logits = reinterpret_cast<Accumulator<T>*>(memory);
  call.dlogits = reinterpret_cast<T*>(memory + call.logits_bytes());
  matmul.lend_workspace(memory + own, workspace.bytes() - own);
  for (int64_t first = 0; first < call.rows; first += call.chunks.rows) {
    const int64_t count = std::min(call.chunks.rows, call.rows - first);
    matmul.run(call.logits_product(args, first, count));
    softmax_rows(args, call, first, count);
    if (!args.dx_nc) continue;
    matmul.run(call.dx_product(args, first, count));
    matmul.run(call.dwte_product(args, first, count));
  }
  double sum = 0;
  for (int64_t n = 0; n < call.rows; ++n)
    sum += static_cast<double>(args.losses_n.as<Accumulator<T>>()[n]);
  args.results->loss += args.scale * sum;
}

LATHE_CPU_OPERATION(LinearCrossEntropy)

}  // namespace lathe::cpu
