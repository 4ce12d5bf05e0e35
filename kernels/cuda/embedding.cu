// Embedding of tokens and positions, with dropout, and its backward pass.
//
//   forward:   x[n] = dropout(wte[token[n]] + wpe[first_position + n % T])
//   backward:  g = dropout'(dx);  dwpe[t] (+)= sum over b of g[b, t]
//              dwte[v] += sum over the n with token[n] = v of g[n]
//
// Layout: x, dx [N, C] with N = B T, wte [V, C], wpe [T.., C], gradients fp32.
//
// Roofline: memory-bound. Forward moves 3 S N C bytes (wpe stays in L2). Backward reads dx twice
// and reads and writes 8 N C bytes of dwte if no token repeats, less if tokens do.
//
// dwte without atomics on floats: a stable radix sort groups equal tokens, in the order of the
// rows. A pass over 8 bits is three small kernels, over all multiprocessors: each block counts the
// digits of a tile of rows; the counts become places; each block writes its tile there. Then each
// block sums a stretch of kStretch sorted rows, whatever their tokens: vocabularies of 65 and of
// 50,257 cause the same amount of work. A token whose rows lie within one stretch is added to dwte
// at once. Sums that cross a border go to the workspace, and a second kernel adds them in order,
// for each token at the stretch where its rows begin. So the order of every sum depends on the
// tokens alone.
#include <cuda_bf16.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/arena.h"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

__device__ __forceinline__ bool in_vocabulary(int64_t token, int64_t vocabulary) {
  return token >= 0 && token < vocabulary;
}

// ---- Forward.

constexpr int kRows = 8;  // per block, one per warp

template <typename T>
struct Forward {
  T* x;
  const int32_t* tokens;
  const T *wte, *wpe;
  DropoutMask mask;
  int64_t rows, channels, seq_len, vocabulary, first_position;
};

template <typename T, int kN>
__global__ void __launch_bounds__(kRows* kWarp) forward_kernel(Forward<T> p) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (n >= p.rows) return;
  const StepInputs step = p.mask.read_inputs();
  const uint64_t row = step.first_sequence * static_cast<uint64_t>(p.seq_len) + n;
  const int64_t token = p.tokens[n];
  const bool known = in_vocabulary(token, p.vocabulary);
  const T* word = p.wte + (known ? token : 0) * p.channels;
  const T* position = p.wpe + (p.first_position + n % p.seq_len) * p.channels;
#pragma unroll 2
  for (int64_t c = threadIdx.x % kWarp * kN; c < p.channels; c += kWarp * kN) {
    float sum[kN], add[kN];
    load_floats(word + c, sum);
    load_floats(position + c, add);
#pragma unroll
    for (int i = 0; i < kN; ++i) sum[i] = known ? sum[i] + add[i] : NAN;
    if (p.mask.active && known) {
      float factor[kN];
      p.mask.factors(step, row * static_cast<uint64_t>(p.channels) + c, factor);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum[i] *= factor[i];
    }
    store_floats(sum, p.x + n * p.channels + c);
  }
}

// ---- Backward: the rows by token.

constexpr int kSortThreads = 256, kSortWarps = kSortThreads / kWarp;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kSteps = 4;  // steps of 32 rows in a warp's part of a tile
constexpr int kTile = kSortThreads * kSteps;
static_assert(kDigits == kSortThreads, "a thread has a digit");

// A row's token in the high bits, its number below. Tokens outside the vocabulary sort last, as
// `vocabulary`.
struct SortedRow {
  uint32_t row, token;
};

struct SortPass {
  const int32_t* tokens;
  const SortedRow* from;  // null in the first pass: the rows in their original order
  SortedRow* to;
  // [kDigits, tiles]: first the rows of a tile with the digit, then those of all tiles before it.
  unsigned* counts;
  unsigned* totals;  // [kDigits]: over all tiles
  uint32_t rows, vocabulary, tiles;
  int shift;  // of the digit

  __device__ __forceinline__ SortedRow row(uint32_t n) const {
    if (from) return from[n];
    const int64_t token = tokens[n];
    return {n, in_vocabulary(token, vocabulary) ? static_cast<uint32_t>(token) : vocabulary};
  }
  __device__ __forceinline__ uint32_t digit(const SortedRow& row) const {
    return row.token >> shift & (kDigits - 1);
  }
  // The row that a lane takes in a step: the order of rows is that of a tile's warps, steps, lanes.
  __device__ __forceinline__ uint32_t row_of_step(int step) const {
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    return blockIdx.x * kTile + (warp * kSteps + step) * kWarp + lane;
  }
};

// The sum of `value` over the lanes up to and including this one. All lanes call it.
__device__ __forceinline__ unsigned sum_to_lane(unsigned value) {
  const int lane = threadIdx.x % kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned below = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

// The sum of `value` over the threads before this one. All kSortThreads call it; `scratch` holds
// one value per warp and may be reused after the call.
__device__ __forceinline__ unsigned sum_before(unsigned value, unsigned* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned sum = sum_to_lane(value);
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  unsigned before = 0;
#pragma unroll
  for (int w = 0; w < kSortWarps; ++w)
    if (w < warp) before += scratch[w];
  __syncthreads();
  return before + sum - value;
}

// One block per tile. Sums of integers are the same in any order.
__global__ void __launch_bounds__(kSortThreads) count_digits_kernel(SortPass p) {
  auto* counts = reinterpret_cast<unsigned*>(ptx::shared_memory());  // [kDigits]
  counts[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t n = p.row_of_step(step);
    if (n < p.rows) atomicAdd(&counts[p.digit(p.row(n))], 1u);
  }
  __syncthreads();
  p.counts[static_cast<size_t>(threadIdx.x) * p.tiles + blockIdx.x] = counts[threadIdx.x];
}

// One warp per digit.
__global__ void __launch_bounds__(kSortThreads) scan_counts_kernel(SortPass p) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t digit = blockIdx.x * kSortWarps + threadIdx.x / kWarp;
  unsigned* counts = p.counts + static_cast<size_t>(digit) * p.tiles;
  unsigned before = 0;
  for (uint32_t first = 0; first < p.tiles; first += kWarp) {
    const uint32_t tile = first + lane;
    const unsigned count = tile < p.tiles ? counts[tile] : 0;
    const unsigned sum = sum_to_lane(count);
    if (tile < p.tiles) counts[tile] = before + sum - count;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (lane == 0) p.totals[digit] = before;
}

// One block per tile. A row goes after all rows of lower digits, and after those of its own digit
// in earlier tiles, warps, steps and lanes.
__global__ void __launch_bounds__(kSortThreads) place_rows_kernel(SortPass p) {
  auto* scratch = reinterpret_cast<unsigned*>(ptx::shared_memory());  // [kSortWarps]
  unsigned* places = scratch + kSortWarps;                            // [kSortWarps, kDigits]
  const int lane = threadIdx.x % kWarp;
  unsigned* mine = places + threadIdx.x / kWarp * kDigits;  // the warp's count of each digit
  for (int d = lane; d < kDigits; d += kWarp) mine[d] = 0;
  SortedRow row[kSteps];
  unsigned rank[kSteps];  // among the warp's rows of the same digit
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t n = p.row_of_step(step);
    if (n < p.rows) row[step] = p.row(n);
    const uint32_t digit = n < p.rows ? p.digit(row[step]) : kDigits;
    const unsigned peers = __match_any_sync(kAllLanes, digit);
    const unsigned below = peers & ((1u << lane) - 1);
    __syncwarp();  // the counts are visible
    if (n < p.rows) rank[step] = mine[digit] + __popc(below);
    __syncwarp();
    if (n < p.rows && below == 0) mine[digit] += __popc(peers);
  }
  // Has a barrier, after which every warp has counted.
  const unsigned lower = sum_before(p.totals[threadIdx.x], scratch);
  unsigned place = lower + p.counts[static_cast<size_t>(threadIdx.x) * p.tiles + blockIdx.x];
  for (int w = 0; w < kSortWarps; ++w) {
    unsigned& of_warp = places[w * kDigits + threadIdx.x];
    const unsigned count = of_warp;
    of_warp = place;
    place += count;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    if (p.row_of_step(step) < p.rows) p.to[mine[p.digit(row[step])] + rank[step]] = row[step];
}

// ---- Backward: sums over sorted rows.

constexpr int kStretch = 32;      // sorted rows that a block sums
constexpr int kSumThreads = 128;  // each with kN channels
constexpr int kAhead = 4;         // rows that a thread loads before it adds the first
constexpr int kPartsAhead = 8;    // the same for a token's parts: frequent tokens have hundreds

template <typename T>
struct Backward {
  float *dwte, *dwpe;
  const T* dx;
  const SortedRow* sorted;
  float* borders;  // [stretches, 2, C]: a stretch's sum for a token that began before it, and for
                   // one that continues after it
  DropoutMask mask;
  int64_t rows, channels, seq_len, vocabulary, positions;
  bool accumulate;

  __device__ float* head(int64_t stretch) const { return borders + stretch * 2 * channels; }
  __device__ float* tail(int64_t stretch) const { return head(stretch) + channels; }
  // Whether sorted rows k - 1 and k have the same token.
  __device__ bool continues(int64_t k) const {
    return k > 0 && k < rows && sorted[k - 1].token == sorted[k].token;
  }
};

// The gradient of row n before its dropout.
template <typename T, int kN>
__device__ __forceinline__ void load_gradient(const Backward<T>& p, const StepInputs& step,
                                              int64_t n, int64_t c, float (&g)[kN]) {
  load_floats(p.dx + n * p.channels + c, g);
  if (!p.mask.active) return;
  const uint64_t row = step.first_sequence * static_cast<uint64_t>(p.seq_len) + n;
  float factor[kN];
  p.mask.factors(step, row * static_cast<uint64_t>(p.channels) + c, factor);
#pragma unroll
  for (int i = 0; i < kN; ++i) g[i] *= factor[i];
}

template <int kN>
__device__ __forceinline__ void add_to(float* target, const float (&sum)[kN]) {
  float old[kN];
  load_floats(target, old);
#pragma unroll
  for (int i = 0; i < kN; ++i) old[i] += sum[i];
  store_floats(old, target);
}

// Writes the sum over sorted rows begin .. end of a stretch, which share a token, to dwte or to the
// borders.
template <typename T, int kN>
__device__ __forceinline__ void flush(const Backward<T>& p, int64_t stretch, int64_t begin,
                                      int64_t end, int64_t c, const float (&sum)[kN]) {
  const uint32_t token = p.sorted[begin].token;
  if (token >= p.vocabulary) return;
  if (begin == stretch * kStretch && p.continues(begin)) {
    store_floats(sum, p.head(stretch) + c);
  } else if (end == (stretch + 1) * kStretch && p.continues(end)) {
    store_floats(sum, p.tail(stretch) + c);
  } else {
    add_to(p.dwte + static_cast<int64_t>(token) * p.channels + c, sum);
  }
}

template <typename T, int kN>
__global__ void __launch_bounds__(kSumThreads, 4) sum_tokens_kernel(Backward<T> p) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x) * kN;
  if (c >= p.channels) return;
  const StepInputs step = p.mask.read_inputs();
  const int64_t stretch = blockIdx.x, first = stretch * kStretch;
  const int64_t last = min(p.rows, first + kStretch);
  float sum[kN] = {};
  int64_t begin = first;
  for (int64_t k = first; k < last; k += kAhead) {
    float g[kAhead][kN];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (k + i < last) load_gradient(p, step, p.sorted[k + i].row, c, g[i]);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (k + i >= last) continue;
      if (k + i > begin && !p.continues(k + i)) {
        flush(p, stretch, begin, k + i, c, sum);
        begin = k + i;
#pragma unroll
        for (int j = 0; j < kN; ++j) sum[j] = 0;
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[j] += g[i][j];
    }
  }
  flush(p, stretch, begin, last, c, sum);
}

// One block per stretch: if a token begins in it and continues, adds all its parts.
template <typename T, int kN>
__global__ void __launch_bounds__(kSumThreads) sum_borders_kernel(Backward<T> p) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x) * kN;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStretch;
  const int64_t border = first + kStretch;
  if (c >= p.channels || !p.continues(border)) return;
  const uint32_t token = p.sorted[border].token;
  const bool began_before = p.continues(first) && p.sorted[first].token == token;
  if (began_before || token >= p.vocabulary) return;
  float sum[kN];
  load_floats(p.tail(blockIdx.x) + c, sum);
  bool goes_on = true;
  for (int64_t stretch = blockIdx.x + 1; goes_on; stretch += kPartsAhead) {
    bool has[kPartsAhead];
    float part[kPartsAhead][kN];
#pragma unroll
    for (int i = 0; i < kPartsAhead; ++i) {
      const int64_t k = (stretch + i) * kStretch;
      has[i] = k < p.rows && p.sorted[k].token == token;
    }
#pragma unroll
    for (int i = 0; i < kPartsAhead; ++i)
      if (has[i]) load_floats(p.head(stretch + i) + c, part[i]);
#pragma unroll
    for (int i = 0; i < kPartsAhead; ++i) {
      if (!has[i]) continue;
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[j] += part[i][j];
    }
    goes_on = has[kPartsAhead - 1];
  }
  add_to(p.dwte + static_cast<int64_t>(token) * p.channels + c, sum);
}

// Zeroes positions past the sequence unless they accumulate.
template <typename T, int kN>
__global__ void __launch_bounds__(kSumThreads) sum_positions_kernel(Backward<T> p) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x) * kN;
  if (c >= p.channels) return;
  const StepInputs step = p.mask.read_inputs();
  const int64_t t = blockIdx.x;
  float sum[kN] = {}, g[kN];
  if (t < p.seq_len) {
#pragma unroll 4
    for (int64_t n = t; n < p.rows; n += p.seq_len) {
      load_gradient(p, step, n, c, g);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum[i] += g[i];
    }
  }
  float* target = p.dwpe + t * p.channels + c;
  if (p.accumulate) {
    add_to(target, sum);
  } else {
    store_floats(sum, target);
  }
}

// ---- Launchers.

// What the workspace of the backward pass holds.
struct Parts {
  int64_t stretches, tiles;
  size_t sorted_bytes, count_bytes, border_bytes;  // there are two lists of sorted rows
  Parts(int64_t rows, int64_t channels)
      : stretches(ceil_div(rows, kStretch)),
        tiles(ceil_div(rows, kTile)),
        sorted_bytes(round_up(static_cast<size_t>(rows) * sizeof(SortedRow), kArenaAlignment)),
        count_bytes(round_up(static_cast<size_t>(kDigits * (tiles + 1)) * sizeof(unsigned),
                             kArenaAlignment)),
        border_bytes(static_cast<size_t>(stretches * 2 * channels) * sizeof(float)) {}
  size_t total() const { return 2 * sorted_bytes + count_bytes + border_bytes; }
};

// The passes write the two lists of sorted rows in turn; the last pass ends in `sorted`.
void sort_rows(SortPass pass, SortedRow* sorted, SortedRow* other, cudaStream_t stream) {
  const dim3 threads(kSortThreads);
  const LaunchShape tiles{dim3(pass.tiles), threads, kDigits * sizeof(unsigned)};
  const LaunchShape digits{dim3(pass.tiles > 0 ? kDigits / kSortWarps : 0), threads};
  const LaunchShape places{dim3(pass.tiles), threads,
                           (kSortWarps + kSortWarps * kDigits) * sizeof(unsigned)};
  const int passes = static_cast<int>(ceil_div(std::bit_width(pass.vocabulary), kDigitBits));
  for (int i = 0; i < passes; ++i) {
    pass.shift = i * kDigitBits;
    pass.to = (passes - i) % 2 ? sorted : other;
    launch(count_digits_kernel, tiles, stream, pass);
    launch(scan_counts_kernel, digits, stream, pass);
    launch(place_rows_kernel, places, stream, pass);
    pass.from = pass.to;
  }
}

template <typename T, int kN>
void launch_backward(const Backward<T>& p, const Parts& parts, cudaStream_t stream) {
  const auto shape = [&](int64_t blocks) {
    return LaunchShape{dim3(static_cast<unsigned>(blocks),
                            static_cast<unsigned>(ceil_div(p.channels, kSumThreads * kN))),
                       dim3(kSumThreads)};
  };
  launch(sum_tokens_kernel<T, kN>, shape(parts.stretches), stream, p);
  launch(sum_borders_kernel<T, kN>, shape(parts.stretches), stream, p);
  launch(sum_positions_kernel<T, kN>, shape(p.accumulate ? p.seq_len : p.positions), stream, p);
}

}  // namespace

template <typename T>
void compute(const EmbeddingForward& args, const Context& context, const Tensor&) {
  LATHE_CHECK(args.x_btc.shape.rank == 3);
  const int64_t seq_len = args.x_btc.shape[1], channels = args.x_btc.shape[2];
  const int64_t rows = args.x_btc.shape[0] * seq_len, vocabulary = rows_of(args.wte_vc);
  check_matrix(args.x_btc, kernel_dtype<T>, rows, channels, "x");
  check_matrix(args.wte_vc, kernel_dtype<T>, vocabulary, channels, "wte");
  check_matrix(args.wpe_tc, kernel_dtype<T>, rows_of(args.wpe_tc), channels, "wpe");
  LATHE_CHECK(args.first_position >= 0 && args.first_position + seq_len <= rows_of(args.wpe_tc),
              "positions {} .. {} of {}", args.first_position, args.first_position + seq_len,
              rows_of(args.wpe_tc));
  check_vector(args.tokens_bt, DType::int32, rows, "tokens");
  const Forward<T> p{data<T>(args.x_btc),
                     args.tokens_bt.as<int32_t>(),
                     data<T>(args.wte_vc),
                     data<T>(args.wpe_tc),
                     DropoutMask(args.dropout),
                     rows,
                     channels,
                     seq_len,
                     vocabulary,
                     args.first_position};
  const LaunchShape shape{dim3(static_cast<unsigned>(ceil_div(rows, kRows))), dim3(kRows * kWarp)};
  if (can_vectorize(channels, p.x, p.wte, p.wpe)) {
    launch(forward_kernel<T, kVectorWidth>, shape, context.stream, p);
  } else {
    launch(forward_kernel<T, 1>, shape, context.stream, p);
  }
}

template <typename T>
size_t workspace_of(const EmbeddingBackward& args, const Context&) {
  return Parts(rows_of(args.dx_btc), columns_of(args.dx_btc)).total();
}

template <typename T>
void compute(const EmbeddingBackward& args, const Context& context, const Tensor& workspace) {
  LATHE_CHECK(args.dx_btc.shape.rank == 3);
  const int64_t seq_len = args.dx_btc.shape[1], channels = args.dx_btc.shape[2];
  const int64_t rows = args.dx_btc.shape[0] * seq_len, positions = rows_of(args.dwpe_tc);
  const int64_t vocabulary = rows_of(args.dwte_vc);
  check_matrix(args.dx_btc, kernel_dtype<T>, rows, channels, "dx");
  check_matrix(args.dwte_vc, DType::fp32, vocabulary, channels, "dwte");
  check_matrix(args.dwpe_tc, DType::fp32, positions, channels, "dwpe");
  LATHE_CHECK(positions >= seq_len, "{} positions for {} tokens", positions, seq_len);
  check_vector(args.tokens_bt, DType::int32, rows, "tokens");
  LATHE_CHECK(rows <= INT32_MAX, "{} tokens in a micro-batch", rows);
  LATHE_CHECK(vocabulary <= int64_t{1} << 31, "{} tokens in the vocabulary", vocabulary);
  const Parts parts(rows, channels);
  check_workspace(workspace, parts.total());
  auto* memory = static_cast<char*>(workspace.data);
  auto* sorted = reinterpret_cast<SortedRow*>(memory);
  auto* other = reinterpret_cast<SortedRow*>(memory + parts.sorted_bytes);
  auto* counts = reinterpret_cast<unsigned*>(memory + 2 * parts.sorted_bytes);
  sort_rows({.tokens = args.tokens_bt.as<int32_t>(),
             .counts = counts,
             .totals = counts + kDigits * parts.tiles,
             .rows = static_cast<uint32_t>(rows),
             .vocabulary = static_cast<uint32_t>(vocabulary),
             .tiles = static_cast<uint32_t>(parts.tiles)},
            sorted, other, context.stream);
  const Backward<T> p{data<float>(args.dwte_vc),
                      data<float>(args.dwpe_tc),
                      data<T>(args.dx_btc),
                      sorted,
                      reinterpret_cast<float*>(memory + 2 * parts.sorted_bytes + parts.count_bytes),
                      DropoutMask(args.dropout),
                      rows,
                      channels,
                      seq_len,
                      vocabulary,
                      positions,
                      args.accumulate};
  if (can_vectorize(channels, p.dwte, p.dwpe, p.dx, p.borders)) {
    launch_backward<T, kVectorWidth>(p, parts, context.stream);
  } else {
    launch_backward<T, 1>(p, parts, context.stream);
  }
}

LATHE_CUDA_OPERATION(EmbeddingForward)
LATHE_CUDA_OPERATION(EmbeddingBackward)

}  // namespace lathe::cuda
