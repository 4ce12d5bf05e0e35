// bf16 products on Intel's matrix extensions (AMX): 16 x 32 by 32 x 16 tile products summed in
// fp32.
//
// op(A) and op(B) are packed into tiles, A once for all threads, B one panel of 32 columns at a
// time by the thread that is about to use it. A panel of 32 rows times a panel of 32 columns is 2 x
// 2 tiles of C, which stay in tile registers over a block of k; the epilogue reads them from 4 KB
// of scratch in the nearest cache. The order of every sum depends on k alone.
//
// Each function that touches vectors or tiles names its instruction set, so the file needs no
// flags of its own and never runs where amx_available() is false.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/matmul_backends.h"
#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/threads.h"

namespace lathe {
namespace {

constexpr int64_t kTileRows = 16, kTileK = 32;         // of A; a tile of B is [kTileK / 2][16][2]
constexpr int64_t kTileElements = kTileRows * kTileK;  // 1 KB of bf16
constexpr int64_t kPanel = 2 * kTileRows;              // rows of A and columns of B at a time
constexpr int64_t kSums = kPanel * kPanel;

constexpr int64_t kBlockM = 512;   // rows of A packed at a time
constexpr int64_t kBlockK = 4096;  // longest k that is summed in registers
constexpr int64_t kBlockN = 1024;  // columns whose sums are kept between blocks of k

int64_t div_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit;
}

// How a product is cut. The thread grid splits panels of columns first: a thread packs each panel
// of B for itself, so threads that share columns repeat that work.
struct Plan {
  int64_t block_m, block_n, block_k;
  int row_threads, col_threads;
  size_t a_bytes, b_bytes, sums_bytes;  // packed A and kept sums (shared), packed B (per thread)

  Plan(int64_t m, int64_t n, int64_t k, int threads) {
    block_m = std::min(kBlockM, div_up(m, kPanel) * kPanel);
    block_k = std::min(kBlockK, div_up(k, kTileK) * kTileK);
    const bool one_block = block_k >= k;
    block_n = one_block ? n : std::min(kBlockN, n);
    choose_grid(threads);
    a_bytes = static_cast<size_t>(block_m * block_k) * sizeof(bf16);
    b_bytes = static_cast<size_t>(kPanel * block_k) * sizeof(bf16);
    const int64_t tiles = one_block ? 0 : block_m / kPanel * div_up(block_n, kPanel);
    sums_bytes = static_cast<size_t>(tiles * kSums) * sizeof(float);
  }
  size_t bytes(int threads) const {
    return a_bytes + sums_bytes + static_cast<size_t>(threads) * (b_bytes + kSums * sizeof(float));
  }

 private:
  void choose_grid(int threads) {
    constexpr int64_t kMultiply = 4, kPack = 5;  // cost of one panel pair, and of packing a panel
    int64_t best = INT64_MAX;
    for (int rows = 1; rows <= threads; ++rows) {
      if (threads % rows) continue;
      const int64_t cost = div_up(div_up(block_n, kPanel), threads / rows) *
                           (div_up(block_m / kPanel, rows) * kMultiply + kPack);
      if (cost >= best) continue;
      best = cost, row_threads = rows, col_threads = threads / rows;
    }
  }
};

// --- Packing. `rows` stands for the 16 rows (64 bytes each) of one tile. -------------------------

// Rows of up to 32 consecutive elements; what is outside `count` x `width` is zero.
[[gnu::target("avx512f,avx512bw"), gnu::always_inline]] inline void load_rows(
    const bf16* source, int64_t ld, int64_t count, int64_t width, __m512i (&rows)[16]) {
  const __mmask32 mask = width >= 32 ? ~0u : (1u << width) - 1;
  for (int i = 0; i < 16; ++i)
    rows[i] = i < count ? _mm512_maskz_loadu_epi16(mask, source + i * ld) : _mm512_setzero_si512();
}

// Two consecutive source rows interleaved in each tile row: [pair][column][2], 16 columns.
[[gnu::target("avx512f,avx512bw,avx512vl"), gnu::always_inline]] inline void load_pairs(
    const bf16* source, int64_t ld, int64_t count, int64_t width, __m512i (&rows)[16]) {
  const __mmask16 mask = static_cast<__mmask16>(width >= 16 ? 0xffff : (1 << width) - 1);
  const __m256i zero = _mm256_setzero_si256();
  for (int i = 0; i < 16; ++i) {
    const bf16* row = source + 2 * i * ld;
    const __m256i even = 2 * i < count ? _mm256_maskz_loadu_epi16(mask, row) : zero;
    const __m256i odd = 2 * i + 1 < count ? _mm256_maskz_loadu_epi16(mask, row + ld) : zero;
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

// Packs the first 32 (or fewer) of `outer` indices (rows of op(A), columns of op(B)) times k: [k /
// 32][2] tiles. contiguous_k: k runs along the source's rows. A tile of A has one outer index a
// row; a tile of B has two values of k a row, interleaved. A second tile that would be all padding
// is left out.
template <bool is_b>
[[gnu::target("avx512f,avx512bw,avx512vl")]] void pack_panel(bool contiguous_k, const bf16* source,
                                                             int64_t ld, int64_t outer, int64_t k,
                                                             bf16* packed) {
  const int64_t step = contiguous_k ? kTileK : kTileK * ld;
  const int64_t tile_step = contiguous_k ? kTileRows * ld : kTileRows;
  for (int64_t k0 = 0; k0 < k; k0 += kTileK, source += step, packed += 2 * kTileElements) {
    const int64_t depth = std::min(kTileK, k - k0);
    for (int64_t t = 0; t < 2 && t * kTileRows < outer; ++t) {
      __m512i rows[16];
      const int64_t width = outer - t * kTileRows;
      if (contiguous_k)
        load_rows(source + t * tile_step, ld, width, depth, rows);
      else
        load_pairs(source + t * tile_step, ld, depth, width, rows);
      if (contiguous_k == is_b) transpose(rows);
      __m512i* tile = reinterpret_cast<__m512i*>(packed + t * kTileElements);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i, rows[i]);
    }
  }
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
  const Config config;
  _tile_loadconfig(&config);
}
[[gnu::target("amx-tile")]] void release_tiles() {
  _tile_release();
}

// sums[32][32] (+)= a-panel b-panel, `steps` tiles deep; only the tiles asked for. The compiler
// does not know that tile loads read memory, hence the barrier.
template <bool two_rows, bool two_cols>
[[gnu::target("amx-tile,amx-bf16"), gnu::noinline]] void multiply(int64_t steps, const bf16* a,
                                                                  const bf16* b, bool first,
                                                                  float* sums) {
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
  for (int64_t s = 0; s < steps; ++s, a += 2 * kTileElements, b += 2 * kTileElements) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_cols) {
      _tile_loadd(7, b + kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (two_rows) {
      _tile_loadd(5, a + kTileElements, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (two_rows && two_cols) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + kTileRows, kStride);
  _tile_stored(2, below, kStride);
  _tile_stored(3, below + kTileRows, kStride);
}

void multiply(int64_t rows, int64_t cols, int64_t steps, const bf16* a, const bf16* b, bool first,
              float* sums) {
  if (rows > kTileRows)
    cols > kTileRows ? multiply<true, true>(steps, a, b, first, sums)
                     : multiply<true, false>(steps, a, b, first, sums);
  else
    cols > kTileRows ? multiply<false, true>(steps, a, b, first, sums)
                     : multiply<false, false>(steps, a, b, first, sums);
}

// The part of one thread in one call.
template <typename TOut>
struct Worker {
  const MatmulArgs<bf16, TOut>& x;
  const Plan& plan;
  int thread;
  bf16 *packed_a, *packed_b;
  float *kept, *scratch;

  Worker(const MatmulArgs<bf16, TOut>& args, const Plan& p, int threads, int index, void* workspace)
      : x(args), plan(p), thread(index) {
    char* at = static_cast<char*>(workspace);
    packed_a = reinterpret_cast<bf16*>(at);
    at += plan.a_bytes;
    kept = reinterpret_cast<float*>(at);
    at += plan.sums_bytes;
    scratch = reinterpret_cast<float*>(at) + thread * kSums;
    at += static_cast<size_t>(threads) * kSums * sizeof(float);
    packed_b = reinterpret_cast<bf16*>(at + static_cast<size_t>(thread) * plan.b_bytes);
  }

  // Panels of A of this block, shared out between all threads.
  void pack_a(int64_t m0, int64_t k0, int threads) {
    const int64_t rows = std::min(plan.block_m, x.m - m0), k = std::min(plan.block_k, x.k - k0);
    for (int64_t p = thread; p * kPanel < rows; p += threads) {
      const int64_t row = m0 + p * kPanel;
      const bf16* source = x.trans_a ? x.a + k0 * x.lda + row : x.a + row * x.lda + k0;
      pack_panel<false>(!x.trans_a, source, x.lda, rows - p * kPanel, k,
                        packed_a + p * kPanel * plan.block_k);
    }
  }

  // This thread's rectangle of the block's panels.
  void multiply_block(int64_t m0, int64_t n0, int64_t k0) {
    const int64_t row_panels = div_up(std::min(plan.block_m, x.m - m0), kPanel);
    const int64_t col_panels = div_up(std::min(plan.block_n, x.n - n0), kPanel);
    const int r = thread % plan.row_threads, c = thread / plan.row_threads;
    const int64_t row_end = row_panels * (r + 1) / plan.row_threads;
    for (int64_t j = col_panels * c / plan.col_threads; j < col_panels * (c + 1) / plan.col_threads;
         ++j) {
      const int64_t col = n0 + j * kPanel, k = std::min(plan.block_k, x.k - k0);
      const bf16* source = x.trans_b ? x.b + col * x.ldb + k0 : x.b + k0 * x.ldb + col;
      pack_panel<true>(x.trans_b, source, x.ldb, x.n - col, k, packed_b);
      for (int64_t i = row_panels * r / plan.row_threads; i < row_end; ++i)
        multiply_panels(
            m0, i, col, k0,
            plan.sums_bytes ? kept + (j * (plan.block_m / kPanel) + i) * kSums : scratch);
    }
  }

  void multiply_panels(int64_t m0, int64_t i, int64_t col, int64_t k0, float* sums) {
    const int64_t row = m0 + i * kPanel;
    const int64_t rows = std::min(kPanel, x.m - row), cols = std::min(kPanel, x.n - col);
    const int64_t k = std::min(plan.block_k, x.k - k0);
    multiply(rows, cols, div_up(k, kTileK), packed_a + i * kPanel * plan.block_k, packed_b, k0 == 0,
             sums);
    if (k0 + k < x.k) return;
    for (int64_t y = 0; y < rows; ++y) finish_row(x, row + y, col, cols, sums + y * kPanel);
  }
};

bool detect_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) return false;
  // Linux gives a process the tile registers on request; threads inherit the right.
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
  return Plan(args.m, args.n, args.k, threads).bytes(threads);
}

template <typename TOut>
void amx_matmul(const MatmulArgs<bf16, TOut>& args, void* workspace) {
  const int threads = max_threads();
  const Plan plan(args.m, args.n, args.k, threads);
#pragma omp parallel num_threads(threads)
  {
    Worker<TOut> worker(args, plan, threads, thread_index(), workspace);
    configure_tiles();
    for (int64_t m0 = 0; m0 < args.m; m0 += plan.block_m) {
      for (int64_t n0 = 0; n0 < args.n; n0 += plan.block_n) {
        for (int64_t k0 = 0; k0 < args.k; k0 += plan.block_k) {
          worker.pack_a(m0, k0, threads);
#pragma omp barrier
          worker.multiply_block(m0, n0, k0);
#pragma omp barrier
        }
      }
    }
    release_tiles();
  }
}

template size_t amx_workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t amx_workspace_bytes(const MatmulArgs<bf16, float>&);
template void amx_matmul(const MatmulArgs<bf16, bf16>&, void*);
template void amx_matmul(const MatmulArgs<bf16, float>&, void*);

}  // namespace lathe
