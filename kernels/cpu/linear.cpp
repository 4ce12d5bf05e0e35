#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vecmath.h"

namespace lathe::cpu {

namespace {

// If no workspace was given, lends zero bytes at an arbitrary address: the context then refuses a
// product that needs more, whereas without a loan it would allocate.
void lend(MatmulContext& matmul, const Tensor& workspace) {
  matmul.lend_workspace(workspace ? workspace.data : &matmul, workspace ? workspace.bytes() : 0);
}

Activation activation_of(Gelu gelu) {
  switch (gelu) {
    case Gelu::none:
      return Activation::none;
    case Gelu::exact:
      return Activation::gelu_exact;
    case Gelu::tanh:
      return Activation::gelu_tanh;
  }
  return Activation::none;
}

// y = x weight.
template <typename T>
MatmulArgs<T, T> forward_product(const LinearForward& args) {
  MatmulArgs<T, T> product;
  product.m = rows_of(args.x_ni);
  product.k = columns_of(args.x_ni);
  product.n = columns_of(args.y_no);
  product.a = args.x_ni.as<T>(), product.lda = product.k;
  product.b = args.weight_io.as<T>(), product.ldb = product.n;
  product.c = args.y_no.as<T>(), product.ldc = product.n;
  product.bias = args.bias_o.as<T>();
  product.activation = activation_of(args.gelu);
  product.pre_activation = args.pre_activation_no.as<T>();
  return product;
}

// dx = dy weight^T.
template <typename T>
MatmulArgs<T, T> input_product(const LinearBackward& args) {
  MatmulArgs<T, T> product;
  product.m = rows_of(args.dy_no);
  product.k = columns_of(args.dy_no);
  product.n = columns_of(args.x_ni);
  product.transpose_b = true;
  product.a = args.dy_no.as<T>(), product.lda = product.k;
  product.b = args.weight_io.as<T>(), product.ldb = product.k;
  product.c = args.dx_ni.as<T>(), product.ldc = product.n;
  return product;
}

// dweight (+)= x^T dy.
template <typename T>
MatmulArgs<T, Accumulator<T>> weight_product(const LinearBackward& args) {
  MatmulArgs<T, Accumulator<T>> product;
  product.m = columns_of(args.x_ni);
  product.k = rows_of(args.x_ni);
  product.n = columns_of(args.dy_no);
  product.transpose_a = true;
  product.a = args.x_ni.as<T>(), product.lda = product.m;
  product.b = args.dy_no.as<T>(), product.ldb = product.n;
  product.c = args.dweight_io.as<Accumulator<T>>(), product.ldc = product.n;
  product.accumulate = args.accumulate;
  return product;
}

template <typename T>
void check_backward(const LinearBackward& args) {
  using A = Accumulator<T>;
  const int64_t rows = rows_of(args.dy_no), inputs = columns_of(args.x_ni);
  const int64_t outputs = columns_of(args.dy_no);
  check_matrix(args.dy_no, dtype_of<T>, rows, outputs, "dy");
  check_matrix(args.x_ni, dtype_of<T>, rows, inputs, "x");
  check_matrix(args.weight_io, dtype_of<T>, inputs, outputs, "weight");
  check_matrix(args.dweight_io, dtype_of<A>, inputs, outputs, "dweight");
  if (args.dbias_o) check_vector(args.dbias_o, dtype_of<A>, outputs, "dbias");
  LATHE_CHECK(!args.dx_sums_i || (args.dx_ni && args.gelu != Gelu::none));
  LATHE_CHECK((args.gelu != Gelu::none) == static_cast<bool>(args.input_pre_activation_ni));
  if (!args.dx_ni) return;
  check_matrix(args.dx_ni, dtype_of<T>, rows, inputs, "dx");
  if (args.input_pre_activation_ni)
    check_matrix(args.input_pre_activation_ni, dtype_of<T>, rows, inputs, "input_pre_activation");
}

}  // namespace

template <typename T>
size_t workspace_of(const LinearForward& args, MatmulContext& matmul) {
  static constexpr T kSome{};  // only whether a pointer is null matters
  MatmulArgs<T, T> product = forward_product<T>(args);
  if (is_planned(args.bias_o)) product.bias = &kSome;
  if (is_planned(args.pre_activation_no)) product.pre_activation = const_cast<T*>(&kSome);
  return matmul.workspace_bytes(product);
}

template <typename T>
void compute(const LinearForward& args, MatmulContext& matmul, const Tensor& workspace) {
  const int64_t rows = rows_of(args.x_ni), inputs = columns_of(args.x_ni);
  const int64_t outputs = columns_of(args.y_no);
  check_matrix(args.x_ni, dtype_of<T>, rows, inputs, "x");
  check_matrix(args.y_no, dtype_of<T>, rows, outputs, "y");
  check_matrix(args.weight_io, dtype_of<T>, inputs, outputs, "weight");
  if (args.bias_o) check_vector(args.bias_o, dtype_of<T>, outputs, "bias");
  LATHE_CHECK(args.gelu != Gelu::none || !args.pre_activation_no);
  if (args.pre_activation_no)
    check_matrix(args.pre_activation_no, dtype_of<T>, rows, outputs, "pre_activation");
  lend(matmul, workspace);
  matmul.run(forward_product<T>(args));
}

template <typename T>
size_t workspace_of(const LinearBackward& args, MatmulContext& matmul) {
  const size_t weights = matmul.workspace_bytes(weight_product<T>(args));
  if (!is_planned(args.dx_ni)) return weights;
  return std::max(weights, matmul.workspace_bytes(input_product<T>(args)));
}

template <typename T>
void compute(const LinearBackward& args, MatmulContext& matmul, const Tensor& workspace) {
  using A = Accumulator<T>;
  check_backward<T>(args);
  lend(matmul, workspace);
  if (args.dbias_o)
    column_sums(args.dy_no.as<T>(), rows_of(args.dy_no), columns_of(args.dy_no), args.accumulate,
                args.dbias_o.as<A>());
  matmul.run(weight_product<T>(args));
  if (!args.dx_ni) return;
  matmul.run(input_product<T>(args));
  if (args.gelu == Gelu::none) return;
  const GeluBackward gelu{.dx = args.dx_ni,
                          .dx_sums_i = args.dx_sums_i,
                          .dy = args.dx_ni,
                          .x = args.input_pre_activation_ni,
                          .gelu = args.gelu,
                          .accumulate = args.accumulate};
  run<T>(gelu, matmul, workspace);
}

LATHE_CPU_OPERATION(LinearForward)
LATHE_CPU_OPERATION(LinearBackward)

}  // namespace lathe::cpu
