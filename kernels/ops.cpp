#include "kernels/ops.h"

namespace lathe {

namespace {

// Of all the tensors that are there (an absent one has no shape).
template <typename... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (0.0 + ... + (tensors.shape.rank > 0 ? static_cast<double>(tensors.bytes()) : 0.0));
}

int64_t last_of(const Tensor& tensor) {
  return tensor.shape[tensor.shape.rank - 1];
}

// [N, I, O] of x [N, I] and y [N, O].
Shape product_sizes(const Tensor& x, const Tensor& y) {
  const int64_t inputs = last_of(x);
  return {inputs > 0 ? x.elements() / inputs : 0, inputs, last_of(y)};
}

// [B, H, T, C/H]; T is the length of the keys.
Shape attention_sizes(const Tensor& out_btc, int64_t n_head, int64_t past) {
  const Shape& btc = out_btc.shape;
  return {btc[0], n_head, past + btc[1], btc[2] / n_head};
}

}  // namespace

OpCost cost(const EmbeddingForward& args) {
  const double x = bytes_of(args.x_btc);
  const double positions = x / static_cast<double>(args.x_btc.shape[0]);
  return {0, 2 * x + positions + bytes_of(args.tokens_bt)};
}

// The rows of dwte are read and written; those of dwpe are read where they accumulate.
OpCost cost(const EmbeddingBackward& args) {
  const double elements = static_cast<double>(args.dx_btc.elements());
  const double rows = 2 * elements * static_cast<double>(size_of(args.dwte_vc.dtype));
  const double positions = (args.accumulate ? 2 : 1) * bytes_of(args.dwpe_tc);
  return {0, bytes_of(args.dx_btc, args.tokens_bt) + rows + positions};
}

OpCost cost(const LayerNormForward& args) {
  return {0, bytes_of(args.out_btc, args.residual_out_btc, args.mean_bt, args.rstd_bt, args.x_btc,
                      args.residual_in_btc, args.weight_c, args.bias_c)};
}

OpCost cost(const LayerNormBackward& args) {
  const double residual = (args.fresh ? 1 : 2) * bytes_of(args.d_residual_btc);
  const double weights =
      (args.accumulate ? 2 : 1) * bytes_of(args.dweight_c, args.dbias_c, args.dx_sums_c);
  return {0, residual + weights +
                 bytes_of(args.dx_btc, args.dout_btc, args.residual_out_btc, args.mean_bt,
                          args.rstd_bt, args.weight_c)};
}

OpCost cost(const LinearForward& args) {
  const double x = static_cast<double>(args.x_ni.elements());
  const int rank = args.y_no.shape.rank;
  return {2 * x * static_cast<double>(args.y_no.shape[rank - 1]),
          bytes_of(args.y_no, args.pre_activation_no, args.x_ni, args.weight_io, args.bias_o)};
}

OpCost cost(const LinearBackward& args) {
  const double x = static_cast<double>(args.x_ni.elements());
  const double product = 2 * x * static_cast<double>(args.dy_no.shape[args.dy_no.shape.rank - 1]);
  const bool needs_dx = args.dx_ni.shape.rank > 0;
  const double weights =
      (args.accumulate ? 2 : 1) * bytes_of(args.dweight_io, args.dbias_o, args.dx_sums_i);
  double bytes = weights + bytes_of(args.dy_no, args.x_ni);
  if (needs_dx) bytes += bytes_of(args.dx_ni, args.weight_io, args.input_pre_activation_ni);
  return {(needs_dx ? 2 : 1) * product, bytes};
}

OpCost cost(const GeluForward& args) {
  return {0, bytes_of(args.y, args.x)};
}

OpCost cost(const GeluBackward& args) {
  const double sums = (args.accumulate ? 2 : 1) * bytes_of(args.dx_sums_i);
  return {0, bytes_of(args.dx, args.dy, args.x) + sums};
}

// Two products over the causal half of B x T x T scores by C channels.
OpCost cost(const AttentionForward& args) {
  const double x = static_cast<double>(args.out_btc.elements());
  return {2 * x * static_cast<double>(args.out_btc.shape[1]),
          bytes_of(args.out_btc, args.logsumexp_bht, args.qkv_bt3c)};
}

// Four products; the scores, computed anew, are not work that the model asks for.
OpCost cost(const AttentionBackward& args) {
  const double x = static_cast<double>(args.out_btc.elements());
  const double sums = (args.accumulate ? 2 : 1) * bytes_of(args.dqkv_sums_3c);
  return {4 * x * static_cast<double>(args.out_btc.shape[1]),
          bytes_of(args.dqkv_bt3c, args.dout_btc, args.out_btc, args.logsumexp_bht, args.qkv_bt3c) +
              sums};
}

// Query t meets past + t + 1 keys.
OpCost cost(const AttentionCached& args) {
  const double sequences = static_cast<double>(args.out_btc.shape[0]);
  const double tokens = static_cast<double>(args.out_btc.shape[1]);
  const double channels = static_cast<double>(args.out_btc.shape[2]);
  const double past = static_cast<double>(args.past);
  const double pairs = sequences * tokens * (past + (tokens + 1) / 2);
  const double cache = 2 * sequences * (past + tokens) * channels;
  return {4 * pairs * channels, bytes_of(args.out_btc, args.qkv_bt3c) +
                                    cache * static_cast<double>(size_of(args.keys_bmc.dtype))};
}

OpCost cost(const Logits& args) {
  const double x = static_cast<double>(args.x_nc.elements());
  const double vocabulary = static_cast<double>(args.vocab_size);
  const double weights = vocabulary * static_cast<double>(args.wte_vc.shape[1]) *
                         static_cast<double>(size_of(args.wte_vc.dtype));
  return {2 * x * vocabulary, bytes_of(args.logits_nv, args.x_nc) + weights};
}

// The logits need not cross the bus.
OpCost cost(const LinearCrossEntropy& args) {
  const double x = static_cast<double>(args.x_nc.elements());
  const double product = 2 * x * static_cast<double>(args.vocab_size);
  double bytes = bytes_of(args.losses_n, args.x_nc, args.wte_vc, args.targets_n);
  if (args.dx_nc.shape.rank == 0) return {product, bytes};
  bytes += bytes_of(args.dx_nc) + (args.accumulate ? 2 : 1) * bytes_of(args.dwte_vc);
  return {3 * product, bytes};
}

OpCost cost(const BeginStep&) {
  return {0, sizeof(StepResults)};
}

OpCost cost(const SquareSums& args) {
  return {0, bytes_of(args.gradients, args.sums)};
}

OpCost cost(const ClipScale& args) {
  return {0, bytes_of(args.sums)};
}

OpCost cost(const AdamW& args) {
  return {0, 2 * bytes_of(args.masters, args.m, args.v) + bytes_of(args.gradients, args.weights)};
}

OpCost cost(const Cast& args) {
  return {0, bytes_of(args.destination, args.source)};
}

Shape sizes(const EmbeddingForward& args) {
  return args.x_btc.shape;
}
Shape sizes(const EmbeddingBackward& args) {
  return args.dx_btc.shape;
}
Shape sizes(const LayerNormForward& args) {
  return args.out_btc.shape;
}
Shape sizes(const LayerNormBackward& args) {
  return args.dout_btc.shape;
}
Shape sizes(const LinearForward& args) {
  return product_sizes(args.x_ni, args.y_no);
}
Shape sizes(const LinearBackward& args) {
  return product_sizes(args.x_ni, args.dy_no);
}
Shape sizes(const GeluForward& args) {
  return args.y.shape;
}
Shape sizes(const GeluBackward& args) {
  return args.dx.shape;
}
Shape sizes(const AttentionForward& args) {
  return attention_sizes(args.out_btc, args.n_head, 0);
}
Shape sizes(const AttentionBackward& args) {
  return attention_sizes(args.out_btc, args.n_head, 0);
}
Shape sizes(const AttentionCached& args) {
  return attention_sizes(args.out_btc, args.n_head, args.past);
}
Shape sizes(const Logits& args) {
  return {args.x_nc.shape[0], args.x_nc.shape[1], args.vocab_size};
}
Shape sizes(const LinearCrossEntropy& args) {
  return {args.x_nc.shape[0], args.x_nc.shape[1], args.vocab_size};
}
Shape sizes(const BeginStep&) {
  return {};
}
Shape sizes(const SquareSums& args) {
  return {args.gradients.elements()};
}
Shape sizes(const ClipScale& args) {
  return {args.sums.elements()};
}
Shape sizes(const AdamW& args) {
  return {args.masters.elements()};
}
Shape sizes(const Cast& args) {
  return {args.destination.elements()};
}

}  // namespace lathe
