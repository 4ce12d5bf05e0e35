#include "kernels/cpu/attention.h"

#include "kernels/cpu/attention_block.h"

namespace lathe {
namespace {

using namespace attention;  // NOLINT: this file is the rest of that namespace

constexpr int64_t kItemQueries = 4 * kBlock;  // queries that share one reading of keys and values
constexpr double kParallelWork = 1e5;         // multiply-adds below which one thread is faster

// One head of one sequence. Query q stands at position past + q and sees keys 0 .. past + q.
template <typename T>
struct Head {
  const T *q, *k, *v;
  T* out;
  Accumulator<T>* logsumexp;  // or null
  int64_t q_stride, kv_stride, out_stride;
  int64_t D, past;
  const DropoutMask* mask;
  uint64_t mask_element;  // of query 0, key 0
  int64_t mask_stride;    // elements from a query to the next
};

template <typename A>
struct ForwardScratch {
  Matrix<A> q, out, k, k_transposed, v, scores;
  A *row_max, *row_sum, *keep;
  size_t bytes;

  ForwardScratch(std::byte* memory, int64_t T, int64_t D) {
    const int64_t rows = std::min(kItemQueries, T), width = tile::padded<A>(D);
    Carver carver(memory);
    q = carver.matrix<A>(rows, width);
    out = carver.matrix<A>(rows, width);
    k = carver.matrix<A>(kBlock, width);
    k_transposed = carver.matrix<A>(width, kBlock);
    v = carver.matrix<A>(kBlock, width);
    scores = carver.matrix<A>(kBlock, kBlock);
    row_max = carver.take<A>(rows);
    row_sum = carver.take<A>(rows);
    keep = carver.take<A>(kBlock);
    bytes = carver.bytes();
  }
};

// scores[j] = exp(scale scores[j] - row_max) for j < count, else 0; row_max and row_sum take the
// row in. Returns what earlier sums must be multiplied by.
template <typename A>
A softmax_row(A* scores, int64_t count, A scale, A& row_max, A& row_sum) {
  constexpr int W = tile::kLanes<A>;
  const int64_t vectors = (count + W - 1) / W;
  const tile::Vector<A> lowest = tile::Vector<A>{} - std::numeric_limits<A>::infinity();
  tile::Vector<A> highest = lowest;
  for (int64_t i = 0; i < vectors; ++i) {
    const auto x = tile::lanes_below(count - i * W, tile::load(scores + i * W), lowest);
    highest = x > highest ? x : highest;
  }
  const A largest = scale * tile::reduce_max<A>(highest);
  const A m = largest > row_max ? largest : row_max;
#pragma omp simd
  for (int64_t j = 0; j < vectors * W; ++j) {
    const A p = fast_exp(scores[j] * scale - m);
    scores[j] = j < count ? p : A(0);
  }
  tile::Vector<A> sum{};
  for (int64_t i = 0; i < vectors; ++i) sum += tile::load(scores + i * W);
  const A correction = fast_exp(row_max - m);
  row_sum = row_sum * correction + tile::reduce_sum<A>(sum);
  row_max = m;
  clear_from(scores, vectors * W);
  return correction;
}

// Turns a block of scores into probabilities, normalised later, and rescales the rows of `out` to
// their new maxima. q0, k0: the block's first query and key.
template <typename T, typename A = Accumulator<T>>
void softmax_block(const Head<T>& head, int64_t rows, int64_t q0, int64_t k0, int64_t keys,
                   Matrix<A> out, A* row_max, A* row_sum, const ForwardScratch<A>& scratch) {
  const A scale = A(1) / std::sqrt(static_cast<A>(head.D));
  const int64_t width = tile::padded<A>(head.D);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t count = std::min(keys, head.past + q0 + r - k0 + 1);
    A* const scores = scratch.scores.row(r);
    if (count <= 0) {
      clear_from(scores, 0);
      continue;
    }
    const A correction = softmax_row(scores, count, scale, row_max[r], row_sum[r]);
    if (k0 > 0 && correction != A(1)) {
      A* const sums = out.row(r);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) sums[c] *= correction;
    }
    if (*head.mask) {
      const uint64_t first =
          head.mask_element + static_cast<uint64_t>((q0 + r) * head.mask_stride + k0);
      head.mask->scales(first, count, scratch.keep);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) scores[j] *= scratch.keep[j];
    }
  }
}

// Normalises and stores the results of queries begin .. begin + rows.
template <typename T, typename A = Accumulator<T>>
void finish_queries(const Head<T>& head, int64_t begin, int64_t rows,
                    const ForwardScratch<A>& scratch) {
  const int64_t width = tile::padded<A>(head.D);
  for (int64_t r = 0; r < rows; ++r) {
    const A inverse = A(1) / scratch.row_sum[r];
    A* const sums = scratch.out.row(r);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sums[c] *= inverse;
    if (head.logsumexp)
      head.logsumexp[begin + r] = scratch.row_max[r] + std::log(scratch.row_sum[r]);
  }
  write_rows<T>(scratch.out.data, width, rows, head.D, head.out + begin * head.out_stride,
                head.out_stride);
}

// Attention of queries begin .. end of a head, at most kItemQueries.
template <typename T, typename A = Accumulator<T>>
void attend(const Head<T>& head, int64_t begin, int64_t end, const ForwardScratch<A>& scratch) {
  const int64_t rows = end - begin, D = head.D, vectors = tile::padded<A>(D) / tile::kLanes<A>;
  read_rows(head.q + begin * head.q_stride, head.q_stride, rows, D, scratch.q);
  std::fill_n(scratch.row_max, rows, -std::numeric_limits<A>::infinity());
  std::fill_n(scratch.row_sum, rows, A(0));
  const int64_t all_keys = head.past + end;
  for (int64_t k0 = 0; k0 < all_keys; k0 += kBlock) {
    const int64_t keys = std::min(kBlock, all_keys - k0);
    read_rows(head.k + k0 * head.kv_stride, head.kv_stride, keys, D, scratch.k);
    transpose_rows(scratch.k, keys, D, scratch.k_transposed);
    read_rows(head.v + k0 * head.kv_stride, head.kv_stride, keys, D, scratch.v);
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t q0 = begin + first, block_rows = std::min(kBlock, rows - first);
      const int64_t diagonal = head.past + q0 - k0;
      if (diagonal + block_rows <= 0) continue;  // above the diagonal
      tile::product<tile::Causal::columns, A>(
          block_rows, D, diagonal, tile::padded<A>(keys) / tile::kLanes<A>,
          {scratch.q.row(first), scratch.q.stride}, tile::constant(scratch.k_transposed),
          scratch.scores, false);
      const Matrix<A> out{scratch.out.row(first), scratch.out.stride};
      softmax_block(head, block_rows, q0, k0, keys, out, scratch.row_max + first,
                    scratch.row_sum + first, scratch);
      tile::product<tile::Causal::last_step, A>(block_rows, keys, diagonal, vectors,
                                                tile::constant(scratch.scores),
                                                tile::constant(scratch.v), out, k0 > 0);
    }
  }
  finish_queries(head, begin, rows, scratch);
}

// Runs every head's queries in pieces of kItemQueries; head_of(b, h) gives the Head. The last
// queries, which see most keys, go first.
template <typename T, typename HeadOf>
void attend_all(const Sizes& s, int64_t past, const Tensor& workspace, const HeadOf& head_of) {
  using A = Accumulator<T>;
  const size_t slice = ForwardScratch<A>(nullptr, s.T, s.D).bytes;
  check_workspace(workspace, slice * static_cast<size_t>(max_threads()));
  const int64_t heads = s.B * s.H, pieces = (s.T + kItemQueries - 1) / kItemQueries;
  [[maybe_unused]] const double work =
      static_cast<double>(heads * s.T) * static_cast<double>((past + s.T) * s.D);
#pragma omp parallel for schedule(dynamic) if (work >= kParallelWork)
  for (int64_t item = 0; item < heads * pieces; ++item) {
    const ForwardScratch<A> scratch(thread_slice(workspace, slice), s.T, s.D);
    const int64_t begin = (pieces - 1 - item / heads) * kItemQueries, head = item % heads;
    attend(head_of(head / s.H, head % s.H), begin, std::min(s.T, begin + kItemQueries), scratch);
  }
}

size_t scratch_bytes(const Tensor& qkv, int64_t n_head) {
  const Sizes s(qkv, n_head);
  const size_t bytes = accumulator_of(qkv.dtype) == DType::fp64
                           ? ForwardScratch<double>(nullptr, s.T, s.D).bytes
                           : ForwardScratch<float>(nullptr, s.T, s.D).bytes;
  return bytes * static_cast<size_t>(max_threads());
}

// Puts the keys and values of the new tokens into the cache.
template <typename T>
void append(const AttentionCached& args, const Sizes& s) {
  const T* qkv = args.qkv_bt3c.as<T>();
  T* const caches[] = {args.keys_bmc.as<T>(), args.values_bmc.as<T>()};
  const int64_t M = args.keys_bmc.shape[1];
#pragma omp parallel for schedule(static) if (s.B * s.T * s.C >= 16384)
  for (int64_t row = 0; row < s.B * s.T; ++row) {
    const int64_t b = row / s.T, position = args.past + row % s.T;
    for (int64_t i = 0; i < 2; ++i)
      std::copy_n(qkv + row * 3 * s.C + (1 + i) * s.C, s.C, caches[i] + (b * M + position) * s.C);
  }
}

}  // namespace

template <typename T>
void attention_forward(const AttentionForward& args, const Tensor& workspace) {
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, dtype_of<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.out_btc, dtype_of<T>, s.B * s.T, s.C, "out");
  check_vector(args.logsumexp_bht, dtype_of<Accumulator<T>>, s.B * s.H * s.T, "logsumexp");
  const DropoutMask mask(args.dropout);
  const T* qkv = args.qkv_bt3c.as<T>();
  T* const out = args.out_btc.as<T>();
  auto* const logsumexp = args.logsumexp_bht.as<Accumulator<T>>();
  attend_all<T>(s, 0, workspace, [&](int64_t b, int64_t h) {
    const T* q = qkv + b * s.T * 3 * s.C + h * s.D;
    Head<T> head;
    head.q = q, head.k = q + s.C, head.v = q + 2 * s.C;
    head.out = out + b * s.T * s.C + h * s.D;
    head.logsumexp = logsumexp + (b * s.H + h) * s.T;
    head.q_stride = head.kv_stride = 3 * s.C, head.out_stride = s.C;
    head.D = s.D, head.past = 0, head.mask = &mask, head.mask_stride = s.T;
    head.mask_element = mask_element_of_head(mask, s, b, h);
    return head;
  });
}

template <typename T>
void attention_cached(const AttentionCached& args, const Tensor& workspace) {
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, dtype_of<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.out_btc, dtype_of<T>, s.B * s.T, s.C, "out");
  LATHE_CHECK(args.keys_bmc.shape.rank == 3 && args.keys_bmc.shape[0] == s.B, "keys are {}",
              to_string(args.keys_bmc.shape));
  const int64_t M = args.keys_bmc.shape[1];
  check_matrix(args.keys_bmc, dtype_of<T>, s.B * M, s.C, "keys");
  check_matrix(args.values_bmc, dtype_of<T>, s.B * M, s.C, "values");
  LATHE_CHECK(args.past >= 0 && args.past + s.T <= M, "{} tokens after {} in a cache of {}", s.T,
              args.past, M);
  append<T>(args, s);
  const DropoutMask none(Dropout{});
  attend_all<T>(s, args.past, workspace, [&](int64_t b, int64_t h) {
    const int64_t cache = b * M * s.C + h * s.D;
    Head<T> head;
    head.q = args.qkv_bt3c.as<T>() + b * s.T * 3 * s.C + h * s.D;
    head.k = args.keys_bmc.as<T>() + cache, head.v = args.values_bmc.as<T>() + cache;
    head.out = args.out_btc.as<T>() + b * s.T * s.C + h * s.D, head.logsumexp = nullptr;
    head.q_stride = 3 * s.C, head.kv_stride = s.C, head.out_stride = s.C;
    head.D = s.D, head.past = args.past, head.mask = &none;
    head.mask_element = 0, head.mask_stride = 0;
    return head;
  });
}

size_t attention_forward_workspace_bytes(const AttentionForward& args) {
  return scratch_bytes(args.qkv_bt3c, args.n_head);
}
size_t attention_cached_workspace_bytes(const AttentionCached& args) {
  return scratch_bytes(args.qkv_bt3c, args.n_head);
}

template void attention_forward<float>(const AttentionForward&, const Tensor&);
template void attention_forward<bf16>(const AttentionForward&, const Tensor&);
template void attention_forward<double>(const AttentionForward&, const Tensor&);
template void attention_cached<float>(const AttentionCached&, const Tensor&);
template void attention_cached<bf16>(const AttentionCached&, const Tensor&);
template void attention_cached<double>(const AttentionCached&, const Tensor&);

}  // namespace lathe
