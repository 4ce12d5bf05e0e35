#include "kernels/ops.h"

namespace lathe {

namespace {

// Of all present tensors (an absent one has no shape).
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

OpCost EmbeddingForward::cost() const {
  const double x = bytes_of(x_btc);
  const double positions = x / static_cast<double>(x_btc.shape[0]);
  return {0, 2 * x + positions + bytes_of(tokens_bt)};
}

// The rows of dwte are read and written; those of dwpe are read only if they accumulate.
OpCost EmbeddingBackward::cost() const {
  const double elements = static_cast<double>(dx_btc.elements());
  const double rows = 2 * elements * static_cast<double>(size_of(dwte_vc.dtype));
  const double positions = (accumulate ? 2 : 1) * bytes_of(dwpe_tc);
  return {0, bytes_of(dx_btc, tokens_bt) + rows + positions};
}

OpCost LayerNormForward::cost() const {
  return {0, bytes_of(out_btc, residual_out_btc, mean_bt, rstd_bt, x_btc, residual_in_btc, weight_c,
                      bias_c)};
}

OpCost LayerNormBackward::cost() const {
  const double residual = (fresh ? 1 : 2) * bytes_of(d_residual_btc);
  const double weights = (accumulate ? 2 : 1) * bytes_of(dweight_c, dbias_c, dx_sums_c);
  return {0, residual + weights +
                 bytes_of(dx_btc, dout_btc, residual_out_btc, mean_bt, rstd_bt, weight_c)};
}

OpCost LinearForward::cost() const {
  const double x = static_cast<double>(x_ni.elements());
  const int rank = y_no.shape.rank;
  return {2 * x * static_cast<double>(y_no.shape[rank - 1]),
          bytes_of(y_no, pre_activation_no, x_ni, weight_io, bias_o)};
}

OpCost LinearBackward::cost() const {
  const double x = static_cast<double>(x_ni.elements());
  const double product = 2 * x * static_cast<double>(dy_no.shape[dy_no.shape.rank - 1]);
  const bool needs_dx = dx_ni.shape.rank > 0;
  const double weights = (accumulate ? 2 : 1) * bytes_of(dweight_io, dbias_o, dx_sums_i);
  double bytes = weights + bytes_of(dy_no, x_ni);
  if (needs_dx) bytes += bytes_of(dx_ni, weight_io, input_pre_activation_ni);
  return {(needs_dx ? 2 : 1) * product, bytes};
}

OpCost GeluForward::cost() const {
  return {0, bytes_of(y, x)};
}

OpCost GeluBackward::cost() const {
  const double sums = (accumulate ? 2 : 1) * bytes_of(dx_sums_i);
  return {0, bytes_of(dx, dy, x) + sums};
}

// Two products over the causal half of B x T x T scores by C channels.
OpCost AttentionForward::cost() const {
  const double x = static_cast<double>(out_btc.elements());
  return {2 * x * static_cast<double>(out_btc.shape[1]),
          bytes_of(out_btc, logsumexp_bht, qkv_bt3c)};
}

// Four products. Recomputing the scores does not count: the model does not ask for it.
OpCost AttentionBackward::cost() const {
  const double x = static_cast<double>(out_btc.elements());
  const double sums = (accumulate ? 2 : 1) * bytes_of(dqkv_sums_3c);
  return {4 * x * static_cast<double>(out_btc.shape[1]),
          bytes_of(dqkv_bt3c, dout_btc, out_btc, logsumexp_bht, qkv_bt3c) + sums};
}

// Query t attends to past + t + 1 keys.
OpCost AttentionCached::cost() const {
  const double sequences = static_cast<double>(out_btc.shape[0]);
  const double tokens = static_cast<double>(out_btc.shape[1]);
  const double channels = static_cast<double>(out_btc.shape[2]);
  const double before = static_cast<double>(past);
  const double pairs = sequences * tokens * (before + (tokens + 1) / 2);
  const double cache = 2 * sequences * (before + tokens) * channels;
  return {4 * pairs * channels,
          bytes_of(out_btc, qkv_bt3c) + cache * static_cast<double>(size_of(keys_bmc.dtype))};
}

OpCost Logits::cost() const {
  const double x = static_cast<double>(x_nc.elements());
  const double vocabulary = static_cast<double>(vocab_size);
  const double weights = vocabulary * static_cast<double>(wte_vc.shape[1]) *
                         static_cast<double>(size_of(wte_vc.dtype));
  return {2 * x * vocabulary, bytes_of(logits_nv, x_nc) + weights};
}

// The logits need not cross the memory bus.
OpCost LinearCrossEntropy::cost() const {
  const double x = static_cast<double>(x_nc.elements());
  const double product = 2 * x * static_cast<double>(vocab_size);
  double bytes = bytes_of(losses_n, x_nc, wte_vc, targets_n);
  if (dx_nc.shape.rank == 0) return {product, bytes};
  bytes += bytes_of(dx_nc) + (accumulate ? 2 : 1) * bytes_of(dwte_vc);
  return {3 * product, bytes};
}

OpCost BeginStep::cost() const {
  return {0, sizeof(StepResults)};
}

OpCost SquareSum::cost() const {
  return {0, bytes_of(gradients)};
}

OpCost ClipScale::cost() const {
  return {0, sizeof(StepResults)};
}

OpCost AdamW::cost() const {
  return {0, 2 * bytes_of(masters, m, v) + bytes_of(gradients, weights)};
}

OpCost Cast::cost() const {
  return {0, (accumulate ? 2 : 1) * bytes_of(destination) + bytes_of(source)};
}

Shape EmbeddingForward::sizes() const {
  return x_btc.shape;
}
Shape EmbeddingBackward::sizes() const {
  return dx_btc.shape;
}
Shape LayerNormForward::sizes() const {
  return out_btc.shape;
}
Shape LayerNormBackward::sizes() const {
  return dout_btc.shape;
}
Shape LinearForward::sizes() const {
  return product_sizes(x_ni, y_no);
}
Shape LinearBackward::sizes() const {
  return product_sizes(x_ni, dy_no);
}
Shape GeluForward::sizes() const {
  return y.shape;
}
Shape GeluBackward::sizes() const {
  return dx.shape;
}
Shape AttentionForward::sizes() const {
  return attention_sizes(out_btc, n_head, 0);
}
Shape AttentionBackward::sizes() const {
  return attention_sizes(out_btc, n_head, 0);
}
Shape AttentionCached::sizes() const {
  return attention_sizes(out_btc, n_head, past);
}
Shape Logits::sizes() const {
  return {x_nc.shape[0], x_nc.shape[1], vocab_size};
}
Shape LinearCrossEntropy::sizes() const {
  return {x_nc.shape[0], x_nc.shape[1], vocab_size};
}
Shape BeginStep::sizes() const {
  return {};
}
Shape SquareSum::sizes() const {
  return {gradients.elements()};
}
Shape ClipScale::sizes() const {
  return {};
}
Shape AdamW::sizes() const {
  return {masters.elements()};
}
Shape Cast::sizes() const {
  return {destination.elements()};
}

}  // namespace lathe
