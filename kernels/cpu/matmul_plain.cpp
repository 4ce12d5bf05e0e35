// Goto and van de Geijn's blocking (2008), with one thread per tile of C. Each thread packs its own
// blocks of A and B, keeps its tile of C in the accumulator type until the sums are complete, and
// then applies the epilogue. Blocks of k are summed in order, for any tiles and threads.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/matmul_backends.h"
#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/threads.h"
#include "kernels/device/round.h"

namespace lathe::cpu {
namespace {

// The widest vector of the target: the largest alignment that the compiler uses (64 bytes with
// AVX-512, 32 with AVX, 16 with SSE or NEON).
constexpr int kVectorBytes = __BIGGEST_ALIGNMENT__;

// The micro-kernel holds kRows x 2 vectors of C in registers: 24 of 32 with AVX-512, else 12 of 16.
template <typename Acc>
struct Micro {
  static constexpr int kRows = kVectorBytes >= 64 ? 12 : 6;
  static constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(Acc));
  static constexpr int kCols = 2 * kWidth;
  using Vector [[gnu::vector_size(kVectorBytes)]] = Acc;
};

constexpr int64_t kBlockK = 384;
constexpr int64_t kMaxRows = 264;  // multiples of kRows and, for the columns, of kCols
constexpr int64_t kMaxCols = 384;

// The tile of C that one thread works on at a time, and the parts of its workspace.
template <typename T>
struct Tiling {
  using Acc = Accumulator<T>;
  int64_t rows, cols, row_tiles, col_tiles;

  Tiling(int64_t m, int64_t n, int threads) {
    rows = round_up(ceil_div(m, ceil_div(m, kMaxRows)), Micro<Acc>::kRows);
    cols = round_up(ceil_div(n, ceil_div(n, kMaxCols)), Micro<Acc>::kCols);
    // Enough tiles for all threads: make them narrower first, then shorter.
    while (ceil_div(m, rows) * ceil_div(n, cols) < 2 * threads && cols > 2 * Micro<Acc>::kCols)
      cols = round_up(cols / 2, Micro<Acc>::kCols);
    while (ceil_div(m, rows) * ceil_div(n, cols) < threads && rows > 2 * Micro<Acc>::kRows)
      rows = round_up(rows / 2, Micro<Acc>::kRows);
    row_tiles = ceil_div(m, rows);
    col_tiles = ceil_div(n, cols);
  }
  int64_t thread_elements() const { return rows * cols + (rows + cols) * kBlockK; }
};

template <typename T, typename Acc>
typename Micro<Acc>::Vector load(const T* from) {
  alignas(kVectorBytes) Acc values[Micro<Acc>::kWidth];
#pragma omp simd
  for (int i = 0; i < Micro<Acc>::kWidth; ++i) values[i] = static_cast<Acc>(from[i]);
  typename Micro<Acc>::Vector v;
  std::memcpy(&v, values, sizeof v);
  return v;
}

// Transposes a square of vectors: each round interleaves row i with row i + half.
template <typename V, int width, size_t... lane>
void transpose(V (&rows)[width], std::index_sequence<lane...>) {
  constexpr int kHalf = width / 2;
  for (int round = 1; round < width; round *= 2) {
    V next[width];
    for (int i = 0; i < kHalf; ++i) {
      const V a = rows[i], b = rows[i + kHalf];
      next[2 * i] = __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * width)...);
      next[2 * i + 1] = __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * width + kHalf)...);
    }
    std::memcpy(rows, next, sizeof rows);
  }
}

// Packs `width` rows (at most kWidth) of the source as columns of a panel, one square of vectors at
// a time.
template <int kWidth, typename T, typename Acc>
void pack_rows(const T* source, int64_t ld, int64_t width, int64_t inner, Acc* panel) {
  constexpr int kLanes = Micro<Acc>::kWidth;
  for (int64_t o0 = 0; o0 < width; o0 += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, width - o0));
    const size_t kept = sizeof(Acc) * static_cast<size_t>(std::min<int64_t>(kLanes, kWidth - o0));
    int64_t i = 0;
    for (; i + kLanes <= inner; i += kLanes) {
      typename Micro<Acc>::Vector rows[kLanes] = {};
      for (int o = 0; o < count; ++o) rows[o] = load<T, Acc>(source + (o0 + o) * ld + i);
      transpose(rows, std::make_index_sequence<kLanes>());
      for (int r = 0; r < kLanes; ++r) std::memcpy(panel + (i + r) * kWidth + o0, &rows[r], kept);
    }
    for (; i < inner; ++i)
      for (int o = 0; o < count; ++o)
        panel[i * kWidth + o0 + o] = static_cast<Acc>(source[(o0 + o) * ld + i]);
  }
}

// Copies op(X)[outer, inner] into panels of kWidth outer indices, inner-major, zero-padded:
// panel[p][i * kWidth + o]. outer_is_row: the source has the outer index as its row.
template <int kWidth, typename T, typename Acc>
void pack(bool outer_is_row, const T* source, int64_t ld, int64_t outer, int64_t inner,
          Acc* panel) {
  for (int64_t o0 = 0; o0 < outer; o0 += kWidth, panel += kWidth * inner) {
    const int64_t width = std::min<int64_t>(kWidth, outer - o0);
    if (width < kWidth) std::memset(panel, 0, sizeof(Acc) * static_cast<size_t>(kWidth * inner));
    if (outer_is_row) {
      pack_rows<kWidth>(source + o0 * ld, ld, width, inner, panel);
    } else if (width == kWidth) {
      for (int64_t i = 0; i < inner; ++i) {
        const T* row = source + i * ld + o0;
#pragma omp simd
        for (int o = 0; o < kWidth; ++o) panel[i * kWidth + o] = static_cast<Acc>(row[o]);
      }
    } else {
      for (int64_t i = 0; i < inner; ++i)
        for (int64_t o = 0; o < width; ++o)
          panel[i * kWidth + o] = static_cast<Acc>(source[i * ld + o0 + o]);
    }
  }
}

// c[kRows, ldc] (+)= a-panel b-panel over k.
template <typename Acc>
void micro_kernel(int64_t k, const Acc* a, const Acc* b, Acc* c, int64_t ldc, bool first) {
  using V = typename Micro<Acc>::Vector;
  constexpr int kRows = Micro<Acc>::kRows, kWidth = Micro<Acc>::kWidth;
  V sum[kRows][2] = {};
  for (int64_t i = 0; i < k; ++i) {
    const V b0 = *reinterpret_cast<const V*>(b + i * 2 * kWidth);
    const V b1 = *reinterpret_cast<const V*>(b + i * 2 * kWidth + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Acc x = a[i * kRows + r];
      sum[r][0] += x * b0;
      sum[r][1] += x * b1;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    V* row = reinterpret_cast<V*>(c + r * ldc);
    row[0] = first ? sum[r][0] : row[0] + sum[r][0];
    row[1] = first ? sum[r][1] : row[1] + sum[r][1];
  }
}

template <typename T, typename TOut>
void compute_tile(const MatmulArgs<T, TOut>& x, const Tiling<T>& t, int64_t tile,
                  Accumulator<T>* workspace) {
  using Acc = Accumulator<T>;
  constexpr int kRows = Micro<Acc>::kRows, kCols = Micro<Acc>::kCols;
  const int64_t row0 = tile % t.row_tiles * t.rows, col0 = tile / t.row_tiles * t.cols;
  const int64_t rows = std::min(t.rows, x.m - row0), cols = std::min(t.cols, x.n - col0);
  Acc *sums = workspace, *a = sums + t.rows * t.cols, *b = a + t.rows * kBlockK;
  for (int64_t k0 = 0; k0 == 0 || k0 < x.k; k0 += kBlockK) {  // k = 0 runs once, with sums of zero
    const int64_t k = std::min(kBlockK, x.k - k0);
    const T* a_source = x.transpose_a ? x.a + k0 * x.lda + row0 : x.a + row0 * x.lda + k0;
    const T* b_source = x.transpose_b ? x.b + col0 * x.ldb + k0 : x.b + k0 * x.ldb + col0;
    pack<kRows>(!x.transpose_a, a_source, x.lda, rows, k, a);
    pack<kCols>(x.transpose_b, b_source, x.ldb, cols, k, b);
    for (int64_t j = 0; j < cols; j += kCols)
      for (int64_t i = 0; i < rows; i += kRows)
        micro_kernel(k, a + i * k, b + j * k, sums + i * t.cols + j, t.cols, k0 == 0);
  }
  for (int64_t i = 0; i < rows; ++i) finish_row(x, row0 + i, col0, cols, sums + i * t.cols);
}

}  // namespace

template <typename T, typename TOut>
size_t plain_workspace_bytes(const MatmulArgs<T, TOut>& args) {
  const int threads = max_threads();
  const Tiling<T> tiling(args.m, args.n, threads);
  return sizeof(Accumulator<T>) * static_cast<size_t>(threads * tiling.thread_elements());
}

template <typename T, typename TOut>
void plain_matmul(const MatmulArgs<T, TOut>& args, void* workspace) {
  const Tiling<T> tiling(args.m, args.n, max_threads());
  const int64_t tiles = tiling.row_tiles * tiling.col_tiles;
  auto* elements = static_cast<Accumulator<T>*>(workspace);
#pragma omp parallel for schedule(static)
  for (int64_t tile = 0; tile < tiles; ++tile)
    compute_tile(args, tiling, tile, elements + thread_index() * tiling.thread_elements());
}

template size_t plain_workspace_bytes(const MatmulArgs<float, float>&);
template size_t plain_workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t plain_workspace_bytes(const MatmulArgs<bf16, float>&);
template size_t plain_workspace_bytes(const MatmulArgs<double, double>&);
template void plain_matmul(const MatmulArgs<float, float>&, void*);
template void plain_matmul(const MatmulArgs<bf16, bf16>&, void*);
template void plain_matmul(const MatmulArgs<bf16, float>&, void*);
template void plain_matmul(const MatmulArgs<double, double>&, void*);

}  // namespace lathe::cpu
