// bf16 products on Intel's matrix extensions (AMX): 16 x 32 by 32 x 16 tile products summed in
// fp32.
//
// op(A) and op(B) are packed into tiles: A once for all threads, B one panel of 32 columns at a
// time by the thread that uses it next. A panel of 32 rows times a panel of 32 columns gives 2 x 2
// tiles of C, which stay in tile registers over a block of k; the epilogue reads them from 4 KB of
// scratch in the nearest cache. The order of every sum depends on k alone.
//
// Each function that uses vectors or tiles names its instruction set, so the file needs no compiler
// flags of its own. It never runs if amx_available() is false.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/matmul_backends.h"
#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/threads.h"
#include "kernels/device/round.h"

namespace lathe::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTileK = 32;         // of A; a tile of B is [kTileK / 2][16][2]
constexpr int64_t kTileElements = kTileRows * kTileK;  // 1 KB of bf16
constexpr int64_t kPanel = 2 * kTileRows;              // rows of A and columns of B at a time
constexpr int64_t kSums = kPanel * kPanel;
constexpr int64_t kLineBytes = 64;

constexpr int64_t kBlockM = 512;   // rows of A packed at a time
constexpr int64_t kBlockK = 1024;  // longest k packed at a time: A must stay in L2
constexpr int64_t kSliceK = 512;   // longest k summed in registers: a slice of B stays in L1
constexpr int64_t kBlockN = 1024;  // columns whose sums are kept between blocks of k

constexpr int64_t kDirectN = 512;  // with at most this many columns, A is not worth packing

// The length of equal parts of k, in whole tiles, each at most `longest`.
int64_t even_parts(int64_t k, int64_t longest) {
  return round_up(ceil_div(k, ceil_div(k, longest)), kTileK);
}

// How a product is divided. The thread grid splits panels of columns first. A thread packs each
// panel of B for itself, so threads that share columns repeat that work.
struct AmxBlocking {
  int64_t block_m, block_n, block_k;
  int row_threads = 1, col_threads = 1;
  size_t a_bytes, b_bytes;        // packed A (shared), packed B (per thread)
  size_t kept_bytes, sums_bytes;  // sums between blocks of k (shared), within one (per thread)

  AmxBlocking(int64_t m, int64_t n, int64_t k, int threads) {
    block_m = std::min(kBlockM, round_up(m, kPanel));
    block_k = even_parts(k, kBlockK);
    const bool one_block = block_k >= k;
    block_n = one_block ? n : std::min(kBlockN, n);
    choose_grid(threads);
    a_bytes = static_cast<size_t>(block_m * block_k) * sizeof(bf16);
    b_bytes = static_cast<size_t>(kPanel * block_k) * sizeof(bf16);
    const int64_t own_rows = std::max(block_m, 2 * kPanel);  // see Worker::multiply_block
    const size_t column_bytes = static_cast<size_t>(own_rows * kPanel) * sizeof(float);
    kept_bytes = one_block ? 0 : column_bytes * static_cast<size_t>(ceil_div(block_n, kPanel));
    sums_bytes = one_block ? column_bytes : 0;
  }
  size_t bytes(int threads) const {
    return a_bytes + kept_bytes + static_cast<size_t>(threads) * (b_bytes + sums_bytes);
  }

 private:
  void choose_grid(int threads) {
    constexpr int64_t kMultiply = 4, kPack = 5;  // cost of one panel pair, and of packing a panel
    int64_t best = INT64_MAX;
    for (int rows = 1; rows <= threads; ++rows) {
      if (threads % rows) continue;
      const int64_t cost = ceil_div(ceil_div(block_n, kPanel), threads / rows) *
                           (ceil_div(block_m / kPanel, rows) * kMultiply + kPack);
      if (cost >= best) continue;
      best = cost, row_threads = rows, col_threads = threads / rows;
    }
  }
};

// --- Packing. `rows` stands for the 16 rows (64 bytes each) of one tile. -------------------------

// Rows of up to 32 consecutive elements, with zeros outside `count` x `width`. `full`: 16 x 32, no
// zeros.
template <bool full>
[[gnu::target("avx512f,avx512bw"), gnu::always_inline]] inline void load_rows(
    const bf16* source, int64_t ld, int64_t count, int64_t width, __m512i (&rows)[16]) {
  const __mmask32 mask = full || width >= 32 ? ~0u : (1u << width) - 1;
  for (int i = 0; i < 16; ++i) {
    if (full)
      rows[i] = _mm512_loadu_si512(source + i * ld);
    else
      rows[i] =
          i < count ? _mm512_maskz_loadu_epi16(mask, source + i * ld) : _mm512_setzero_si512();
  }
}

// Two consecutive source rows interleaved in each tile row: [pair][column][2], 16 columns. `full`:
// 32 x 16, no zeros.
template <bool full>
[[gnu::target("avx512f,avx512bw,avx512vl"), gnu::always_inline]] inline void load_pairs(
    const bf16* source, int64_t ld, int64_t count, int64_t width, __m512i (&rows)[16]) {
  const __mmask16 mask = static_cast<__mmask16>(full || width >= 16 ? 0xffff : (1 << width) - 1);
  for (int i = 0; i < 16; ++i) {
    const bf16* row = source + 2 * i * ld;
    __m256i even = _mm256_setzero_si256(), odd = even;
    if (full) {
      even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + ld));
    } else {
      if (2 * i < count) even = _mm256_maskz_loadu_epi16(mask, row);
      if (2 * i + 1 < count) odd = _mm256_maskz_loadu_epi16(mask, row + ld);
    }
    rows[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                              _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
  }
}

// Transposes 16 x 16 values of 32 bits.
[[gnu::target("avx512f"), gnu::always_inline]] inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  }
  // r[4 q + c], 128-bit lane l: rows 4 q .. 4 q + 3 of column 4 l + c.
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);           // lanes 0, 2 of q = 0 and 1
    t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);       // lanes 1, 3
    t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);  // of q = 2 and 3
    t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
    r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
    r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
    r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
  }
}

// Packs one tile: `count` outer indices by `depth` values of k (full: 16 by 32).
template <bool is_b, bool contiguous_k, bool full>
[[gnu::target("avx512f,avx512bw,avx512vl"), gnu::always_inline]] inline void pack_tile(
    const bf16* source, int64_t ld, int64_t count, int64_t depth, bf16* packed) {
  __m512i rows[16];
  if constexpr (contiguous_k)
    load_rows<full>(source, ld, count, depth, rows);
  else
    load_pairs<full>(source, ld, depth, count, rows);
  if constexpr (contiguous_k == is_b) transpose(rows);
  __m512i* tile = reinterpret_cast<__m512i*>(packed);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i, rows[i]);
}

// Packs the first 32 (or fewer) of `outer` indices (rows of op(A), columns of op(B)) times k as
// [k / 32][2] tiles. contiguous_k: k runs along the source's rows. A row of a tile of A has one
// outer index; a row of a tile of B has two values of k, interleaved. A second tile that would be
// all padding is left out.
template <bool is_b, bool contiguous_k>
[[gnu::target("avx512f,avx512bw,avx512vl")]] void pack_panel(const bf16* source, int64_t ld,
                                                             int64_t outer, int64_t k,
                                                             bf16* packed) {
  const int64_t step = contiguous_k ? kTileK : kTileK * ld;
  const int64_t tile_step = contiguous_k ? kTileRows * ld : kTileRows;
  for (int64_t k0 = 0; k0 < k; k0 += kTileK, source += step, packed += 2 * kTileElements) {
    if (outer >= kPanel && k0 + kTileK <= k) {
      pack_tile<is_b, contiguous_k, true>(source, ld, 0, 0, packed);
      pack_tile<is_b, contiguous_k, true>(source + tile_step, ld, 0, 0, packed + kTileElements);
      continue;
    }
    const int64_t depth = std::min(kTileK, k - k0);
    pack_tile<is_b, contiguous_k, false>(source, ld, outer, depth, packed);
    if (outer > kTileRows)
      pack_tile<is_b, contiguous_k, false>(source + tile_step, ld, outer - kTileRows, depth,
                                           packed + kTileElements);
  }
}
template <bool is_b>
void pack_panel(bool contiguous_k, const bf16* source, int64_t ld, int64_t outer, int64_t k,
                bf16* packed) {
  if (contiguous_k)
    pack_panel<is_b, true>(source, ld, outer, k, packed);
  else
    pack_panel<is_b, false>(source, ld, outer, k, packed);
}

// --- Multiplication ------------------------------------------------------------------------------

// Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B; all are 16 rows of 64 bytes.
[[gnu::target("amx-tile")]] void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64);
  // A constant, because GCC 12 believes that this instruction reads only 8 of the 64 bytes. It left
  // out the stores of the others into a variable on the stack.
  static constexpr Config kConfig;
  _tile_loadconfig(&kConfig);
}
void store_fence() {
  asm volatile("sfence" ::: "memory");
}
[[gnu::target("amx-tile")]] void release_tiles() {
  _tile_release();
}

// Cache lines to prefetch, `lines` of them with each step of k: the next panel of B, or the tiles
// of C, whose rows are too far apart for the hardware prefetcher. Prefetching too many lines does
// no harm.
struct Ahead {
  const char* at = nullptr;
  int64_t stride = 0, lines = 0;
};

// A panel of A: packed tiles, or 32 rows of A itself. Distances: bytes between a tile's rows,
// elements to the second tile and to the next k.
struct PanelA {
  const bf16* first;
  int64_t row_bytes, second, step;

  static PanelA packed(const bf16* tiles) { return {tiles, 64, kTileElements, 2 * kTileElements}; }
  static PanelA direct(const bf16* rows, int64_t ld) {
    return {rows, ld * int64_t{sizeof(bf16)}, kTileRows * ld, kTileK};
  }
};

// sums[32][32] (+)= a-panel b-panel, `steps` tiles deep; only the requested tiles. The compiler
// does not know that tile loads read memory, so there is a barrier.
template <bool two_rows, bool two_cols>
[[gnu::target("amx-tile,amx-bf16"), gnu::noinline]] void multiply(int64_t steps, PanelA a,
                                                                  const bf16* b, bool first,
                                                                  float* sums, Ahead next_b,
                                                                  Ahead this_c) {
  constexpr int kStride = kPanel * sizeof(float);
  float* below = sums + kTileRows * kPanel;
  asm volatile("" ::: "memory");
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kStride);
    _tile_loadd(1, sums + kTileRows, kStride);
    _tile_loadd(2, below, kStride);
    _tile_loadd(3, below + kTileRows, kStride);
  }
  for (int64_t s = 0; s < steps; ++s, a.first += a.step, b += 2 * kTileElements) {
    for (int64_t i = 0; i < next_b.lines; ++i, next_b.at += next_b.stride)
      __builtin_prefetch(next_b.at, 0, 2);
    for (int64_t i = 0; i < this_c.lines; ++i, this_c.at += this_c.stride)
      __builtin_prefetch(this_c.at, 0, 2);
    _tile_loadd(4, a.first, a.row_bytes);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_cols) {
      _tile_loadd(7, b + kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (two_rows) {
      _tile_loadd(5, a.first + a.second, a.row_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (two_rows && two_cols) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + kTileRows, kStride);
  _tile_stored(2, below, kStride);
  _tile_stored(3, below + kTileRows, kStride);
}

void multiply(int64_t rows, int64_t cols, int64_t steps, PanelA a, const bf16* b, bool first,
              float* sums, Ahead next_b, Ahead this_c) {
  const auto kernel = rows > kTileRows
                          ? (cols > kTileRows ? multiply<true, true> : multiply<true, false>)
                          : (cols > kTileRows ? multiply<false, true> : multiply<false, false>);
  kernel(steps, a, b, first, sums, next_b, this_c);
}

// --- Epilogue of a full panel of 32 columns; narrower ones use the general finish_row. -----------

[[gnu::target("avx512f,avx512bw,avx512vl"), gnu::always_inline]] inline void add_bias(
    const bf16* bias, __m512& low, __m512& high) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(bias);
  const __m512i b0 = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves));
  const __m512i b1 = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves + 1));
  low = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(b0, 16)));
  high = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(b1, 16)));
}

// Whether writes to C bypass the caches: C is too large to stay in them, so reading its lines
// before overwriting them would only waste memory bandwidth.
template <typename TOut>
bool streams(const MatmulArgs<bf16, TOut>& x) {
  constexpr int64_t kLarge = 2 << 20;  // bytes
  return std::is_same_v<TOut, float> && !x.accumulate &&
         x.m * x.n * int64_t{sizeof(TOut)} >= kLarge && x.ldc % (kLineBytes / sizeof(TOut)) == 0 &&
         reinterpret_cast<uintptr_t>(x.c) % kLineBytes == 0;
}

[[gnu::target("avx512f,avx512bw,avx512vl"), gnu::noinline]] void finish_full(
    const MatmulArgs<bf16, float>& x, int64_t row, int64_t rows, int64_t col, const float* sums) {
  float* c = x.c + row * x.ldc + col;
  const bool stream = streams(x);
  for (int64_t y = 0; y < rows; ++y, c += x.ldc, sums += kPanel) {
    __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + kTileRows);
    if (x.bias) add_bias(x.bias + col, low, high);
    if (x.accumulate) {
      low = _mm512_add_ps(low, _mm512_loadu_ps(c));
      high = _mm512_add_ps(high, _mm512_loadu_ps(c + kTileRows));
    }
    if (stream) {
      _mm512_stream_ps(c, low);
      _mm512_stream_ps(c + kTileRows, high);
    } else {
      _mm512_storeu_ps(c, low);
      _mm512_storeu_ps(c + kTileRows, high);
    }
  }
}

template <Activation kind>
void activate_all(float* values, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] = activate<kind>(values[i]);
}

// Rounds rows of sums, after adding the bias, into `to`. `back`: also writes the rounded values
// back into sums.
[[gnu::target("avx512f,avx512bw,avx512vl,avx512bf16")]] void round_rows(const bf16* bias,
                                                                        int64_t rows, float* sums,
                                                                        bf16* to, int64_t ld,
                                                                        bool back) {
  for (int64_t y = 0; y < rows; ++y, sums += kPanel) {
    __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + kTileRows);
    if (bias) add_bias(bias, low, high);
    const __m512bh pair = _mm512_cvtne2ps_pbh(high, low);
    const __m512i both = reinterpret_cast<const __m512i&>(pair);
    if (to) _mm512_storeu_si512(to + y * ld, both);
    if (!back) continue;
    const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    _mm512_storeu_si512(sums, _mm512_slli_epi32(first, 16));
    _mm512_storeu_si512(sums + kTileRows, _mm512_slli_epi32(second, 16));
  }
}

void finish_full(const MatmulArgs<bf16, bf16>& x, int64_t row, int64_t rows, int64_t col,
                 float* sums) {
  bf16* c = x.c + row * x.ldc + col;
  const bf16* bias = x.bias ? x.bias + col : nullptr;
  if (x.activation == Activation::none) {
    round_rows(bias, rows, sums, c, x.ldc, false);
    return;
  }
  bf16* kept = x.pre_activation ? x.pre_activation + row * x.ldc + col : nullptr;
  round_rows(bias, rows, sums, kept, x.ldc, true);
  if (x.activation == Activation::gelu_tanh)
    activate_all<Activation::gelu_tanh>(sums, rows * kPanel);
  else
    activate_all<Activation::gelu_exact>(sums, rows * kPanel);
  round_rows(nullptr, rows, sums, c, x.ldc, false);
}

// One thread's work in one call.
template <typename TOut>
struct Worker {
  const MatmulArgs<bf16, TOut>& x;
  const AmxBlocking& blocking;
  int thread;
  bf16 *packed_a, *packed_b;
  float *kept, *own;

  Worker(const MatmulArgs<bf16, TOut>& args, const AmxBlocking& p, int index, void* workspace)
      : x(args), blocking(p), thread(index) {
    char* at = static_cast<char*>(workspace);
    packed_a = reinterpret_cast<bf16*>(at);
    at += blocking.a_bytes;
    kept = reinterpret_cast<float*>(at);
    at += blocking.kept_bytes +
          static_cast<size_t>(thread) * (blocking.b_bytes + blocking.sums_bytes);
    packed_b = reinterpret_cast<bf16*>(at);
    own = reinterpret_cast<float*>(at + blocking.b_bytes);
  }

  // Packs the panels of A of this block, divided among all threads.
  void pack_a(int64_t m0, int64_t k0, int threads) {
    const int64_t rows = std::min(blocking.block_m, x.m - m0),
                  k = std::min(blocking.block_k, x.k - k0);
    for (int64_t p = thread; p * kPanel < rows; p += threads) {
      const int64_t row = m0 + p * kPanel;
      if (direct(row)) continue;
      const bf16* source = x.transpose_a ? x.a + k0 * x.lda + row : x.a + row * x.lda + k0;
      pack_panel<false>(!x.transpose_a, source, x.lda, rows - p * kPanel, k,
                        packed_a + p * kPanel * blocking.block_k);
    }
  }

  // Multiplies this thread's rectangle of the block's panels.
  void multiply_block(int64_t m0, int64_t n0, int64_t k0) {
    const int64_t row_panels = ceil_div(std::min(blocking.block_m, x.m - m0), kPanel);
    const int64_t col_panels = ceil_div(std::min(blocking.block_n, x.n - n0), kPanel);
    const int r = thread % blocking.row_threads, c = thread / blocking.row_threads;
    const int64_t row_begin = row_panels * r / blocking.row_threads;
    const int64_t row_end = row_panels * (r + 1) / blocking.row_threads;
    const int64_t col_end = col_panels * (c + 1) / blocking.col_threads;
    const int64_t k = std::min(blocking.block_k, x.k - k0);
    const int64_t slice_k = even_parts(k, kSliceK);
    for (int64_t j = col_panels * c / blocking.col_threads; j < col_end; ++j) {
      const int64_t col = n0 + j * kPanel;
      pack_panel<true>(x.transpose_b, b_at(k0, col), x.ldb, x.n - col, k, packed_b);
      float* sums = blocking.kept_bytes ? kept + j * blocking.block_m * kPanel : own;
      Ahead next = j + 1 < col_end ? ahead_b(k0, col + kPanel, k, row_end - row_begin) : Ahead();
      for (int64_t slice = 0; slice < k; slice += slice_k) {
        const int64_t depth = std::min(slice_k, k - slice);
        // Sums that are finished at once use two scratch tiles; otherwise each panel has its own.
        const bool at_once = depth == x.k;
        multiply_slice(m0, row_begin, row_end, col, k0, slice, depth, sums, at_once, next);
      }
    }
  }

  // Multiplies panels of rows begin .. end by one of columns, over k0 + slice .. k0 + slice + k.
  // Finishes a panel after starting the next one, so that the two overlap.
  void multiply_slice(int64_t m0, int64_t begin, int64_t end, int64_t col, int64_t k0,
                      int64_t slice, int64_t k, float* sums, bool at_once, Ahead& next) {
    const int64_t steps = ceil_div(k, kTileK), cols = std::min(kPanel, x.n - col);
    const bool last = k0 + slice + k >= x.k;
    const auto sums_of = [&](int64_t i) { return sums + (at_once ? i % 2 : i) * kSums; };
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = m0 + i * kPanel, rows = std::min(kPanel, x.m - row);
      Ahead c;
      if (last && !streams(x))
        c = {reinterpret_cast<const char*>(x.c + row * x.ldc + col), x.ldc * int64_t{sizeof(TOut)},
             ceil_div(rows, steps)};
      multiply(rows, cols, steps, a_panel(m0, i, k0, slice), packed_b + slice * kPanel,
               k0 + slice == 0, sums_of(i), next, c);
      next.at += next.stride * next.lines * steps;
      if (last && i > begin) finish(row - kPanel, col, sums_of(i - 1));
    }
    if (last && begin < end) finish(m0 + (end - 1) * kPanel, col, sums_of(end - 1));
  }

  void finish(int64_t row, int64_t col, float* sums) {
    const int64_t rows = std::min(kPanel, x.m - row), cols = std::min(kPanel, x.n - col);
    if (cols == kPanel)
      finish_full(x, row, rows, col, sums);
    else
      for (int64_t y = 0; y < rows; ++y) finish_row(x, row + y, col, cols, sums + y * kPanel);
  }

  // Whether rows row .. row + 32 of A are multiplied in place: packing costs as much as a few
  // panels of columns.
  bool direct(int64_t row) const {
    return !x.transpose_a && x.n <= kDirectN && x.k % kTileK == 0 && row + kPanel <= x.m;
  }
  PanelA a_panel(int64_t m0, int64_t i, int64_t k0, int64_t slice) const {
    const int64_t row = m0 + i * kPanel;
    if (direct(row)) return PanelA::direct(x.a + row * x.lda + k0 + slice, x.lda);
    return PanelA::packed(packed_a + i * kPanel * blocking.block_k + slice * kPanel);
  }

  const bf16* b_at(int64_t k, int64_t col) const {
    return x.transpose_b ? x.b + col * x.ldb + k : x.b + k * x.ldb + col;
  }
  // Prefetches the panel of B at `col`, spread over the multiplications by `panels` panels of A. If
  // k runs along its rows and the rows are adjacent, the panel is one run of lines.
  Ahead ahead_b(int64_t k0, int64_t col, int64_t k, int64_t panels) const {
    const int64_t stride = x.transpose_b ? kLineBytes : x.ldb * int64_t{sizeof(bf16)};
    const int64_t steps = std::max<int64_t>(1, panels * ceil_div(k, kTileK));
    return {reinterpret_cast<const char*>(b_at(k0, col)), stride, ceil_div(k, steps)};
  }
};

bool detect_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) return false;
  // Linux grants a process the tile registers on request; threads inherit the permission.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool amx_available() {
  static const bool available = detect_amx();
  return available;
}

template <typename TOut>
size_t amx_workspace_bytes(const MatmulArgs<bf16, TOut>& args) {
  const int threads = max_threads();
  return AmxBlocking(args.m, args.n, args.k, threads).bytes(threads);
}

template <typename TOut>
void amx_matmul(const MatmulArgs<bf16, TOut>& args, void* workspace) {
  const int threads = max_threads();
  const AmxBlocking blocking(args.m, args.n, args.k, threads);
#pragma omp parallel num_threads(threads)
  {
    Worker<TOut> worker(args, blocking, thread_index(), workspace);
    configure_tiles();
    bool again = false;  // packed A is in use until every thread is done
    for (int64_t m0 = 0; m0 < args.m; m0 += blocking.block_m) {
      for (int64_t n0 = 0; n0 < args.n; n0 += blocking.block_n) {
        for (int64_t k0 = 0; k0 < args.k; k0 += blocking.block_k) {
          if (again) thread_barrier();
          worker.pack_a(m0, k0, threads);
          thread_barrier();
          worker.multiply_block(m0, n0, k0);
          again = true;
        }
      }
    }
    release_tiles();
    store_fence();  // streamed stores become visible before later stores
  }
}

template size_t amx_workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t amx_workspace_bytes(const MatmulArgs<bf16, float>&);
template void amx_matmul(const MatmulArgs<bf16, bf16>&, void*);
template void amx_matmul(const MatmulArgs<bf16, float>&, void*);

}  // namespace lathe::cpu
