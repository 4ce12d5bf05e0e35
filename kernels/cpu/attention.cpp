#include "kernels/cpu/attention_block.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/device/round.h"

namespace lathe::cpu {
namespace {

using namespace attention;  // NOLINT: this file is the rest of that namespace

constexpr int64_t kItemQueries = 4 * kBlock;  // queries that share one pass over keys and values
constexpr double kParallelWork = 1e5;         // with fewer multiply-adds, one thread is faster

// One head of one sequence. Query q is at position past + q and sees keys 0 .. past + q.
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
  A *row_max, *row_sum, *correction, *keep;
  size_t bytes;

  ForwardScratch(std::byte* memory, int64_t rows, int64_t D) {
    const int64_t width = tile::padded<A>(D);
    Carver carver(memory);
    q = carver.matrix<A>(rows, width);
    out = carver.matrix<A>(rows, width);
    k = carver.matrix<A>(kBlock, width);
    k_transposed = carver.matrix<A>(width, kBlock);
    v = carver.matrix<A>(kBlock, width);
    scores = carver.matrix<A>(kBlock, kBlock);
    row_max = carver.take<A>(rows);
    row_sum = carver.take<A>(rows);
    correction = carver.take<A>(kBlock);
    keep = carver.take<A>(kBlock);
    bytes = carver.bytes();
  }
};

// The operands of a block's softmax: `rows` queries from q0, `keys` keys from k0.
template <typename A>
struct ScoreBlock {
  int64_t rows, q0, k0, keys, past;
  Matrix<A> scores, out;
  A *row_max, *row_sum, *correction;  // per query of the block
  A scale;

  int64_t keys_seen(int64_t r) const {
    return std::clamp<int64_t>(past + q0 + r - k0 + 1, 0, keys);
  }
};

// The largest of a row's first `count` scores; -infinity if count is 0.
template <typename A>
A largest_score(const A* scores, int64_t count) {
  constexpr int W = tile::kLanes<A>;
  const tile::Vector<A> lowest = tile::Vector<A>{} - std::numeric_limits<A>::infinity();
  tile::Vector<A> highest = lowest;
  int64_t j = 0;
  for (; j + W <= count; j += W) highest = tile::larger<A>(tile::load(scores + j), highest);
  if (j < count)
    highest =
        tile::larger<A>(tile::lanes_below(count - j, tile::load(scores + j), lowest), highest);
  return tile::reduce_max<A>(highest);
}

// Updates row_max with the block's largest scores. The maximum of an online softmax may lag behind
// (exp(8) is far from overflow), which avoids most rescaling of earlier sums by `correction`.
template <typename A>
void update_maxima(const ScoreBlock<A>& block) {
  constexpr A kLag = 8;
  A largest[kBlock];
  for (int64_t r = 0; r < block.rows; ++r)
    largest[r] = largest_score(block.scores.row(r), block.keys_seen(r));
#pragma omp simd
  for (int64_t r = 0; r < block.rows; ++r) {
    const A old = block.row_max[r], seen = largest[r] * block.scale;
    const A m = seen > old + kLag ? seen : old;
    block.correction[r] = exp_of_score(old - m);
    block.row_sum[r] *= block.correction[r];
    block.row_max[r] = m;
  }
  if (block.k0 == 0) return;  // nothing to rescale yet
  for (int64_t r = 0; r < block.rows; ++r) {
    const A correction = block.correction[r];
    if (correction == A(1)) continue;
    A* const sums = block.out.row(r);
    for (int64_t c = 0; c < block.out.stride; c += tile::kLanes<A>)
      tile::store(sums + c, tile::load(sums + c) * correction);
  }
}

// scores[j] = exp(scale scores[j] - m) for j < count, else 0. Returns their sum.
template <typename A>
A exponentials(A* scores, int64_t count, A scale, A m) {
  constexpr int W = tile::kLanes<A>;
  tile::Vector<A> sum{};
  int64_t j = 0;
  for (; j + W <= count; j += W) {
    const auto p = exp_of_scores<A>(tile::load(scores + j) * scale - m);
    tile::store(scores + j, p);
    sum += p;
  }
  if (j < count) {
    const auto p = exp_of_scores<A>(tile::load(scores + j) * scale - m);
    const auto seen = tile::lanes_below(count - j, p, tile::Vector<A>{});
    tile::store(scores + j, seen);
    sum += seen;
    j += W;
  }
  clear_from(scores, j);
  return tile::reduce_sum<A>(sum);
}

// Turns scores into probabilities, to be normalised at the end, and drops some.
template <typename T, typename A = Accumulator<T>>
void softmax_block(const Head<T>& head, const ScoreBlock<A>& block, A* keep) {
  update_maxima(block);
  for (int64_t r = 0; r < block.rows; ++r)
    block.row_sum[r] +=
        exponentials(block.scores.row(r), block.keys_seen(r), block.scale, block.row_max[r]);
  if (!*head.mask) return;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t count = block.keys_seen(r);
    A* const scores = block.scores.row(r);
    const int64_t first = (block.q0 + r) * head.mask_stride + block.k0;
    head.mask->scales(head.mask_element + static_cast<uint64_t>(first), count, keep);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) scores[j] *= keep[j];
  }
}

// Normalises and stores the results of queries begin .. begin + rows, which are in scratch from
// row `at` on.
template <typename T, typename A = Accumulator<T>>
void finish_queries(const Head<T>& head, int64_t begin, int64_t rows, int64_t at,
                    const ForwardScratch<A>& scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const A sum = scratch.row_sum[at + r], inverse = A(1) / sum;
    for (int64_t c = 0; c < head.D; c += tile::kLanes<A>)
      tile::store_as<A>(head.out + (begin + r) * head.out_stride + c,
                        tile::load(scratch.out.row(at + r) + c) * inverse, head.D - c);
    if (head.logsumexp) head.logsumexp[begin + r] = scratch.row_max[at + r] + std::log(sum);
  }
}

// Adds one block of keys to queries begin .. begin + rows, in scratch from row `at` on.
template <typename T, typename A = Accumulator<T>>
void attend_block(const Head<T>& head, int64_t begin, int64_t rows, int64_t at, int64_t k0,
                  int64_t keys, const ForwardScratch<A>& scratch) {
  using tile::Causal, tile::constant;
  const int64_t D = head.D, vectors = tile::padded<A>(D) / tile::kLanes<A>;
  const int64_t key_vectors = tile::padded<A>(keys) / tile::kLanes<A>;
  read_rows(head.k + k0 * head.kv_stride, head.kv_stride, keys, D, scratch.k);
  transpose_rows(scratch.k, keys, D, scratch.k_transposed);
  read_rows(head.v + k0 * head.kv_stride, head.kv_stride, keys, D, scratch.v);
  for (int64_t first = 0; first < rows; first += kBlock) {
    ScoreBlock<A> block;
    block.rows = std::min(kBlock, rows - first), block.keys = keys;
    block.q0 = begin + first, block.k0 = k0, block.past = head.past;
    const int64_t diagonal = head.past + block.q0 - k0;
    if (diagonal + block.rows <= 0) continue;  // above the diagonal
    block.scores = scratch.scores;
    block.out = {scratch.out.row(at + first), scratch.out.stride};
    block.row_max = scratch.row_max + at + first, block.row_sum = scratch.row_sum + at + first;
    block.correction = scratch.correction;
    block.scale = A(1) / std::sqrt(static_cast<A>(D));
    tile::product<Causal::columns, A>(block.rows, D, diagonal, key_vectors,
                                      {scratch.q.row(at + first), scratch.q.stride},
                                      constant(scratch.k_transposed), scratch.scores, false);
    softmax_block(head, block, scratch.keep);
    tile::product<Causal::last_step, A>(block.rows, keys, diagonal, vectors,
                                        constant(scratch.scores), constant(scratch.v), block.out,
                                        k0 > 0);
  }
}

// A head's queries are cut into pieces of kItemQueries. If one piece holds them all, an item of
// work is several heads, which go through the blocks of keys together: their keys are adjacent in
// memory. This matters for sampling, which spends its time reading keys.
struct WorkSplit {
  int64_t rows, pieces, heads, heads_per_item, items;

  explicit WorkSplit(const Sizes& s) {
    rows = std::min(s.T, kItemQueries), pieces = ceil_div(s.T, kItemQueries);
    heads = s.B * s.H;
    const int64_t share = ceil_div(heads, max_threads());
    heads_per_item = std::clamp<int64_t>(kItemQueries / std::max<int64_t>(s.T, 1), 1,
                                         std::max<int64_t>(share, 1));
    items = ceil_div(heads, heads_per_item) * pieces;
  }
  int64_t scratch_rows() const { return heads_per_item * rows; }
};

// Runs an item: queries begin .. end of heads first_head .. first_head + heads.
template <typename T, typename HeadOf, typename A = Accumulator<T>>
void attend(const HeadOf& head_of, int64_t first_head, int64_t heads, int64_t begin, int64_t end,
            const ForwardScratch<A>& scratch) {
  const int64_t rows = end - begin, all_keys = head_of(first_head).past + end;
  std::fill_n(scratch.row_max, heads * rows, -std::numeric_limits<A>::infinity());
  std::fill_n(scratch.row_sum, heads * rows, A(0));
  for (int64_t i = 0; i < heads; ++i) {
    const Head<T> head = head_of(first_head + i);
    read_rows<T, A>(head.q + begin * head.q_stride, head.q_stride, rows, head.D,
                    {scratch.q.row(i * rows), scratch.q.stride});
  }
  for (int64_t k0 = 0; k0 < all_keys; k0 += kBlock)
    for (int64_t i = 0; i < heads; ++i)
      attend_block(head_of(first_head + i), begin, rows, i * rows, k0,
                   std::min(kBlock, all_keys - k0), scratch);
  for (int64_t i = 0; i < heads; ++i)
    finish_queries(head_of(first_head + i), begin, rows, i * rows, scratch);
}

// Runs every head; head_of(b H + h) returns the Head. The last queries, which see most keys, go
// first.
template <typename T, typename HeadOf>
void attend_all(const Sizes& s, int64_t past, const Tensor& workspace, const HeadOf& head_of) {
  using A = Accumulator<T>;
  const WorkSplit split(s);
  const size_t slice = ForwardScratch<A>(nullptr, split.scratch_rows(), s.D).bytes;
  check_workspace(workspace, slice * static_cast<size_t>(max_threads()));
  [[maybe_unused]] const double work =
      static_cast<double>(split.heads * s.T) * static_cast<double>((past + s.T) * s.D);
#pragma omp parallel for schedule(dynamic) if (work >= kParallelWork)
  for (int64_t item = 0; item < split.items; ++item) {
    const ForwardScratch<A> scratch(thread_slice(workspace, slice), split.scratch_rows(), s.D);
    const int64_t groups = split.items / split.pieces;
    const int64_t begin = (split.pieces - 1 - item / groups) * kItemQueries;
    const int64_t first = item % groups * split.heads_per_item;
    attend<T>(head_of, first, std::min(split.heads_per_item, split.heads - first), begin,
              std::min(s.T, begin + kItemQueries), scratch);
  }
}

template <typename T>
size_t scratch_bytes(const Tensor& qkv, int64_t n_head) {
  const Sizes s(qkv, n_head);
  return ForwardScratch<Accumulator<T>>(nullptr, WorkSplit(s).scratch_rows(), s.D).bytes *
         static_cast<size_t>(max_threads());
}

// Writes the keys and values of the new tokens into the cache.
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
void compute(const AttentionForward& args, MatmulContext&, const Tensor& workspace) {
  const Sizes s(args.qkv_bt3c, args.n_head);
  check_matrix(args.qkv_bt3c, dtype_of<T>, s.B * s.T, 3 * s.C, "qkv");
  check_matrix(args.out_btc, dtype_of<T>, s.B * s.T, s.C, "out");
  check_vector(args.logsumexp_bht, dtype_of<Accumulator<T>>, s.B * s.H * s.T, "logsumexp");
  const DropoutMask mask(args.dropout);
  const T* qkv = args.qkv_bt3c.as<T>();
  T* const out = args.out_btc.as<T>();
  auto* const logsumexp = args.logsumexp_bht.as<Accumulator<T>>();
  attend_all<T>(s, 0, workspace, [&](int64_t index) {
    const int64_t b = index / s.H, h = index % s.H;
    const T* q = qkv + b * s.T * 3 * s.C + h * s.D;
    Head<T> head;
    head.q = q, head.k = q + s.C, head.v = q + 2 * s.C;
    head.out = out + b * s.T * s.C + h * s.D;
    head.logsumexp = logsumexp + index * s.T;
    head.q_stride = head.kv_stride = 3 * s.C, head.out_stride = s.C;
    head.D = s.D, head.past = 0, head.mask = &mask, head.mask_stride = s.T;
    head.mask_element = mask_element_of_head(mask, s, b, h);
    return head;
  });
}

template <typename T>
void compute(const AttentionCached& args, MatmulContext&, const Tensor& workspace) {
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
  attend_all<T>(s, args.past, workspace, [&](int64_t index) {
    const int64_t b = index / s.H, h = index % s.H;
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

template <typename T>
size_t workspace_of(const AttentionForward& args, MatmulContext&) {
  return scratch_bytes<T>(args.qkv_bt3c, args.n_head);
}
template <typename T>
size_t workspace_of(const AttentionCached& args, MatmulContext&) {
  return scratch_bytes<T>(args.qkv_bt3c, args.n_head);
}

LATHE_CPU_OPERATION(AttentionForward)
LATHE_CPU_OPERATION(AttentionCached)

}  // namespace lathe::cpu
