#include "kernels/cpu/attention_block.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/define_operation.h"

namespace lathe::cpu {
namespace {

using namespace attention;  // NOLINT: this file is the rest of that namespace

// One head of one sequence. q, k, v share a stride, as do dq, dk, dv; so do out and dout.
template <typename T>
struct HeadGradient {
  const T *q, *k, *v, *out, *dout;
  const Accumulator<T>* logsumexp;
  T *dq, *dk, *dv;
  int64_t T_, D, qkv_stride, out_stride;
  const DropoutMask* mask;
  uint64_t mask_element;  // of query 0, key 0
};

template <typename A>
struct BackwardScratch {
  Matrix<A> q, dout, dq;                               // for the whole head
  Matrix<A> k, k_transposed, v, v_transposed, dk, dv;  // for a block of keys
  Matrix<A> p, ds;                                     // for a block of scores
  A *delta, *keep;
  size_t bytes;

  BackwardScratch(std::byte* memory, int64_t T, int64_t D) {
    const int64_t width = tile::padded<A>(D);
    Carver carver(memory);
    for (Matrix<A>* m : {&q, &dout, &dq}) *m = carver.matrix<A>(T, width);
    for (Matrix<A>* m : {&k, &v, &dk, &dv}) *m = carver.matrix<A>(kBlock, width);
    for (Matrix<A>* m : {&k_transposed, &v_transposed}) *m = carver.matrix<A>(width, kBlock);
    for (Matrix<A>* m : {&p, &ds}) *m = carver.matrix<A>(kBlock, kBlock);
    delta = carver.take<A>(T);
    keep = carver.take<A>(kBlock);
    bytes = carver.bytes();
  }
};

// delta[t] = dout[t] . out[t], which equals the sum over keys of dP P.
template <typename T, typename A = Accumulator<T>>
void compute_delta(const HeadGradient<T>& head, const BackwardScratch<A>& scratch) {
  for (int64_t t = 0; t < head.T_; ++t) {
    const A* dout = scratch.dout.row(t);
    const T* out = head.out + t * head.out_stride;
    tile::Vector<A> sum{};
    for (int64_t c = 0; c < head.D; c += tile::kLanes<A>)
      sum += tile::load(dout + c) * tile::load_as<A>(out + c, head.D - c);
    scratch.delta[t] = tile::reduce_sum<A>(sum);
  }
}

// On entry p holds scores and ds dP. On return p holds the probabilities that multiplied the values
// (with dropout), ds the gradient of the unscaled scores. keep: dropout's factors, or null.
template <typename A>
void softmax_row_backward(A* p, A* ds, int64_t count, A scale, A logsumexp, A delta,
                          const A* keep) {
  constexpr int W = tile::kLanes<A>;
  int64_t j = 0;
  for (; j < count; j += W) {
    const auto e = exp_of_scores<A>(tile::load(p + j) * scale - logsumexp);
    const auto kept = keep ? tile::load(keep + j) : tile::Vector<A>{} + A(1);
    const auto d = e * (tile::load(ds + j) * kept - delta) * scale;
    tile::store(p + j, tile::lanes_below(count - j, e * kept, tile::Vector<A>{}));
    tile::store(ds + j, tile::lanes_below(count - j, d, tile::Vector<A>{}));
  }
  clear_from(p, j);
  clear_from(ds, j);
}

template <typename T, typename A = Accumulator<T>>
void softmax_block_backward(const HeadGradient<T>& head, int64_t q0, int64_t rows, int64_t k0,
                            int64_t keys, const BackwardScratch<A>& scratch) {
  const A scale = A(1) / std::sqrt(static_cast<A>(head.D));
  const A* const keep = *head.mask ? scratch.keep : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t q = q0 + r, count = std::min(keys, q - k0 + 1);
    if (keep)
      head.mask->scales(head.mask_element + static_cast<uint64_t>(q * head.T_ + k0), count,
                        scratch.keep);
    softmax_row_backward(scratch.p.row(r), scratch.ds.row(r), count, scale, head.logsumexp[q],
                         scratch.delta[q], keep);
  }
}

// The block of keys from k0 with all queries that see it: computes its dk and dv, and adds to dq.
template <typename T, typename A = Accumulator<T>>
void key_block_backward(const HeadGradient<T>& head, int64_t k0, const BackwardScratch<A>& s) {
  using tile::Causal, tile::constant;
  const int64_t D = head.D, keys = std::min(kBlock, head.T_ - k0);
  const int64_t vectors = tile::padded<A>(D) / tile::kLanes<A>;
  const int64_t key_vectors = tile::padded<A>(keys) / tile::kLanes<A>;
  read_rows(head.k + k0 * head.qkv_stride, head.qkv_stride, keys, D, s.k);
  read_rows(head.v + k0 * head.qkv_stride, head.qkv_stride, keys, D, s.v);
  transpose_rows(s.k, keys, D, s.k_transposed);
  transpose_rows(s.v, keys, D, s.v_transposed);
  for (int64_t q0 = k0; q0 < head.T_; q0 += kBlock) {
    const int64_t rows = std::min(kBlock, head.T_ - q0), diagonal = q0 - k0;
    const Matrix<const A> q{s.q.row(q0), s.q.stride}, dout{s.dout.row(q0), s.dout.stride};
    tile::product<Causal::columns, A>(rows, D, diagonal, key_vectors, q, constant(s.k_transposed),
                                      s.p, false);
    tile::product<Causal::columns, A>(rows, D, diagonal, key_vectors, dout,
                                      constant(s.v_transposed), s.ds, false);
    softmax_block_backward(head, q0, rows, k0, keys, s);
    const bool add = q0 > k0;
    tile::product<Causal::first_step, A>(keys, rows, diagonal, vectors, constant(s.p), dout, s.dv,
                                         add);
    tile::product<Causal::first_step, A>(keys, rows, diagonal, vectors, constant(s.ds), q, s.dk,
                                         add);
    tile::product<Causal::last_step, A>(rows, keys, diagonal, vectors, constant(s.ds),
                                        constant(s.k), {s.dq.row(q0), s.dq.stride}, k0 > 0);
  }
  const int64_t at = k0 * head.qkv_stride;
  write_rows<T>(s.dk, keys, D, head.dk + at, head.qkv_stride);
  write_rows<T>(s.dv, keys, D, head.dv + at, head.qkv_stride);
}

template <typename T, typename A = Accumulator<T>>
void head_backward(const HeadGradient<T>& head, const BackwardScratch<A>& scratch) {
  read_rows(head.q, head.qkv_stride, head.T_, head.D, scratch.q);
  read_rows(head.dout, head.out_stride, head.T_, head.D, scratch.dout);
  compute_delta(head, scratch);
  for (int64_t k0 = 0; k0 < head.T_; k0 += kBlock) key_block_backward(head, k0, scratch);
  write_rows<T>(scratch.dq, head.T_, head.D, head.dq, head.qkv_stride);
}

}  // namespace

// One thread owns a head of a sequence, so that every sum over queries or keys has one order.
template <typename T>
void compute(const AttentionBackward& args, MatmulContext&, const Tensor& workspace) {
  using A = Accumulator<T>;
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, dtype_of<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.dqkv_bt3c, dtype_of<T>, s.B * s.T, 3 * s.C, "dqkv");
  check_matrix(args.out_btc, dtype_of<T>, s.B * s.T, s.C, "out");
  check_matrix(args.dout_btc, dtype_of<T>, s.B * s.T, s.C, "dout");
  check_vector(args.logsumexp_bht, dtype_of<A>, s.B * s.H * s.T, "logsumexp");
  if (args.dqkv_sums_3c) check_vector(args.dqkv_sums_3c, dtype_of<A>, 3 * s.C, "dqkv_sums");
  const DropoutMask mask(args.dropout);
  const size_t slice = BackwardScratch<A>(nullptr, s.T, s.D).bytes;
  check_workspace(workspace, slice * static_cast<size_t>(max_threads()));
  const T *qkv = args.qkv_bt3c.as<T>(), *out = args.out_btc.as<T>(), *dout = args.dout_btc.as<T>();
  T* const dqkv = args.dqkv_bt3c.as<T>();
  const A* const logsumexp = args.logsumexp_bht.as<A>();
#pragma omp parallel for schedule(dynamic)
  for (int64_t item = 0; item < s.B * s.H; ++item) {
    const BackwardScratch<A> scratch(thread_slice(workspace, slice), s.T, s.D);
    const int64_t b = item / s.H, h = item % s.H;
    const int64_t at = b * s.T * 3 * s.C + h * s.D, out_at = b * s.T * s.C + h * s.D;
    HeadGradient<T> head;
    head.q = qkv + at, head.k = head.q + s.C, head.v = head.k + s.C;
    head.out = out + out_at, head.dout = dout + out_at;
    head.logsumexp = logsumexp + item * s.T;
    head.dq = dqkv + at, head.dk = head.dq + s.C, head.dv = head.dk + s.C;
    head.T_ = s.T, head.D = s.D, head.qkv_stride = 3 * s.C, head.out_stride = s.C;
    head.mask = &mask, head.mask_element = mask_element_of_head(mask, s, b, h);
    head_backward(head, scratch);
  }
  if (args.dqkv_sums_3c)
    column_sums(dqkv, s.B * s.T, 3 * s.C, args.accumulate, args.dqkv_sums_3c.as<A>());
}

template <typename T>
size_t workspace_of(const AttentionBackward& args, MatmulContext&) {
  const Sizes s(args.qkv_bt3c, args.n_head);
  return BackwardScratch<Accumulator<T>>(nullptr, s.T, s.D).bytes *
         static_cast<size_t>(max_threads());
}

LATHE_CPU_OPERATION(AttentionBackward)

}  // namespace lathe::cpu
