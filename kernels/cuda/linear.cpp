// y = gelu(x W + b) and its backward, as matrix products (matmul.cpp) and GELU kernels (gelu.cu).
//
//   forward   pre = round(x W + b)            2 N I O FLOPs; the bias is the product's epilogue
//             y = gelu(pre)                   a kernel: 2 N O elements over the bus
//   backward  dW (+)= x^T dy                  2 N I O FLOPs
//             db (+)= sum of dy's rows        a kernel, if dbias is asked for: N O elements
//             dx = round(dy W^T) gelu'(pre)   2 N I O FLOPs; gelu' in place, by a kernel that sums
//                                             the columns of dx as well
//
// Roofline: at N, I, O in the thousands the products are compute-bound (N I O / (N I + I O + N O) /
// 2 FLOPs a byte in bf16), the GELU kernels memory-bound.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/parts.h"

namespace lathe::cuda {

namespace {

// y = x W + b, into `to`.
template <typename T>
MatmulArgs forward_product(const LinearForward& args, const Tensor& to) {
  MatmulArgs product;
  product.m = rows_of(args.x_ni), product.k = columns_of(args.x_ni), product.n = columns_of(to);
  product.a = args.x_ni.data, product.b = args.weight_io.data, product.c = to.data;
  product.bias = args.bias_o.data;
  product.input = product.output = kernel_dtype<T>;
  return product;
}

// dx = dy W^T.
template <typename T>
MatmulArgs input_product(const LinearBackward& args) {
  MatmulArgs product;
  product.m = rows_of(args.dy_no), product.k = columns_of(args.dy_no);
  product.n = columns_of(args.x_ni);
  product.a = args.dy_no.data, product.b = args.weight_io.data, product.c = args.dx_ni.data;
  product.transpose_b = true;
  product.input = product.output = kernel_dtype<T>;
  return product;
}

// dW (+)= x^T dy.
template <typename T>
MatmulArgs weight_product(const LinearBackward& args) {
  MatmulArgs product;
  product.m = columns_of(args.x_ni), product.k = rows_of(args.x_ni);
  product.n = columns_of(args.dy_no);
  product.a = args.x_ni.data, product.b = args.dy_no.data, product.c = args.dweight_io.data;
  product.transpose_a = true;
  product.accumulate = args.accumulate;
  product.input = kernel_dtype<T>, product.output = DType::fp32;
  return product;
}

template <typename T>
void check_forward(const LinearForward& args) {
  constexpr DType kType = kernel_dtype<T>;
  const int64_t rows = rows_of(args.x_ni), inputs = columns_of(args.x_ni);
  const int64_t outputs = columns_of(args.y_no);
  check_matrix(args.x_ni, kType, rows, inputs, "x");
  check_matrix(args.y_no, kType, rows, outputs, "y");
  check_matrix(args.weight_io, kType, inputs, outputs, "weight");
  if (args.bias_o) check_vector(args.bias_o, kType, outputs, "bias");
  LATHE_CHECK(args.gelu != Gelu::none || !args.pre_activation_no);
  if (args.pre_activation_no)
    check_matrix(args.pre_activation_no, kType, rows, outputs, "pre_activation");
}

template <typename T>
void check_backward(const LinearBackward& args) {
  constexpr DType kType = kernel_dtype<T>;
  const int64_t rows = rows_of(args.dy_no), inputs = columns_of(args.x_ni);
  const int64_t outputs = columns_of(args.dy_no);
  check_matrix(args.dy_no, kType, rows, outputs, "dy");
  check_matrix(args.x_ni, kType, rows, inputs, "x");
  check_matrix(args.weight_io, kType, inputs, outputs, "weight");
  check_matrix(args.dweight_io, DType::fp32, inputs, outputs, "dweight");
  if (args.dbias_o) check_vector(args.dbias_o, DType::fp32, outputs, "dbias");
  LATHE_CHECK(!args.dx_sums_i || (args.dx_ni && args.gelu != Gelu::none));
  LATHE_CHECK((args.gelu != Gelu::none) == static_cast<bool>(args.input_pre_activation_ni));
  if (!args.dx_ni) return;
  check_matrix(args.dx_ni, kType, rows, inputs, "dx");
  if (args.input_pre_activation_ni)
    check_matrix(args.input_pre_activation_ni, kType, rows, inputs, "input_pre_activation");
}

// db (+)= sum of dy's rows.
template <typename T>
void bias_gradient(const LinearBackward& args, const Context& context, const Tensor& workspace) {
  const int64_t rows = rows_of(args.dy_no), columns = columns_of(args.dy_no);
  const size_t bytes = args.dy_no.bytes() + (args.accumulate ? 2 : 1) * args.dbias_o.bytes();
  begin_part(context, "bias gradient", {rows, columns}, {0, static_cast<double>(bytes)});
  column_sums(data<float>(args.dbias_o), args.dy_no.data, kernel_dtype<T>, rows, columns,
              args.accumulate, workspace, context.stream);
}

// dx = dx gelu'(pre), in place.
GeluBackward gelu_of(const LinearBackward& args) {
  return {.dx = args.dx_ni,
          .dx_sums_i = args.dx_sums_i,
          .dy = args.dx_ni,
          .x = args.input_pre_activation_ni,
          .gelu = args.gelu,
          .accumulate = args.accumulate};
}

}  // namespace

template <typename T>
size_t workspace_of(const LinearForward&, const Context&) {
  return Matmul::kWorkspaceBytes;
}

template <typename T>
void compute(const LinearForward& args, const Context& context, const Tensor& workspace) {
  check_forward<T>(args);
  if (args.y_no.elements() == 0) return;
  // Without a tensor for the pre-activation, GELU is done in place: each element is read once.
  const Tensor& product = args.pre_activation_no ? args.pre_activation_no : args.y_no;
  run_part(context, "product", forward_product<T>(args, product), workspace);
  if (args.gelu == Gelu::none) return;
  const GeluForward gelu{args.y_no, product, args.gelu};
  begin_part(context, "GELU", gelu.sizes(), gelu.cost());
  run<T>(gelu, context, workspace);
}

template <typename T>
size_t workspace_of(const LinearBackward& args, const Context& context) {
  size_t bytes = Matmul::kWorkspaceBytes;
  if (is_planned(args.dbias_o))
    bytes = std::max(bytes, column_sums_workspace(rows_of(args.dy_no), columns_of(args.dy_no)));
  if (!is_planned(args.dx_ni)) return bytes;
  return std::max(bytes, workspace_bytes<T>(gelu_of(args), context));
}

template <typename T>
void compute(const LinearBackward& args, const Context& context, const Tensor& workspace) {
  check_backward<T>(args);
  run_part(context, "weight gradient", weight_product<T>(args), workspace);
  if (args.dbias_o) bias_gradient<T>(args, context, workspace);
  if (!args.dx_ni) return;
  run_part(context, "input gradient", input_product<T>(args), workspace);
  if (args.gelu == Gelu::none) return;
  const GeluBackward gelu = gelu_of(args);
  begin_part(context, "GELU backward", gelu.sizes(), gelu.cost());
  run<T>(gelu, context, workspace);
}

LATHE_CUDA_OPERATION(LinearForward)
LATHE_CUDA_OPERATION(LinearBackward)

}  // namespace lathe::cuda
