#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

void check_tokens(const Tensor& tokens_bt, int64_t rows, int64_t vocabulary) {
  check_vector(tokens_bt, DType::int32, rows, "tokens");
  const int32_t* tokens = tokens_bt.as<int32_t>();
  for (int64_t n = 0; n < rows; ++n) {
    LATHE_CHECK(tokens[n] >= 0 && tokens[n] < vocabulary, "token {} of {}", tokens[n], vocabulary);
  }
}

// out[c] = token[c] + position[c], times the mask if there is one.
template <typename T>
void add_row(const T* token, const T* position, const DropoutMask& mask, uint64_t first_element,
             int64_t channels, T* out) {
  using A = Accumulator<T>;
  if (!mask) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c)
      store(out[c], static_cast<A>(token[c]) + static_cast<A>(position[c]));
    return;
  }
  A scale[kMaskChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kMaskChunk) {
    const int64_t count = std::min(kMaskChunk, channels - c0);
    mask.scales(first_element + static_cast<uint64_t>(c0), count, scale);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A sum = static_cast<A>(token[c0 + i]) + static_cast<A>(position[c0 + i]);
      store(out[c0 + i], sum * scale[i]);
    }
  }
}

// The gradient of a run of at most kMaskChunk channels, before dropout, as accumulators.
template <typename T>
void undropped(const T* dx, const DropoutMask& mask, uint64_t first_element, int64_t count,
               Accumulator<T>* gradient) {
  using A = Accumulator<T>;
  if (!mask) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) gradient[i] = static_cast<A>(dx[i]);
    return;
  }
  A scale[kMaskChunk];
  mask.scales(first_element, count, scale);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) gradient[i] = static_cast<A>(dx[i]) * scale[i];
}

}  // namespace

template <typename T>
void compute(const EmbeddingForward& args, MatmulContext&, const Tensor&) {
  LATHE_CHECK(args.x_btc.shape.rank == 3);
  const int64_t seq_len = args.x_btc.shape[1], channels = args.x_btc.shape[2];
  const int64_t rows = args.x_btc.shape[0] * seq_len;
  check_matrix(args.x_btc, dtype_of<T>, rows, channels, "x");
  check_matrix(args.wte_vc, dtype_of<T>, rows_of(args.wte_vc), channels, "wte");
  check_matrix(args.wpe_tc, dtype_of<T>, rows_of(args.wpe_tc), channels, "wpe");
  LATHE_CHECK(args.first_position >= 0 && args.first_position + seq_len <= rows_of(args.wpe_tc),
              "positions {} .. {} of {}", args.first_position, args.first_position + seq_len,
              rows_of(args.wpe_tc));
  check_tokens(args.tokens_bt, rows, rows_of(args.wte_vc));
  const DropoutMask mask(args.dropout);
  T* x = args.x_btc.as<T>();
  const T *wte = args.wte_vc.as<T>(), *wpe = args.wpe_tc.as<T>();
  const int32_t* tokens = args.tokens_bt.as<int32_t>();
  const uint64_t first_row = mask.first_sequence() * static_cast<uint64_t>(seq_len);
  parallel_for(rows, rows * channels, [&](int64_t n) {
    const uint64_t row = first_row + static_cast<uint64_t>(n);
    add_row(wte + tokens[n] * channels, wpe + (args.first_position + n % seq_len) * channels, mask,
            row * static_cast<uint64_t>(channels), channels, x + n * channels);
  });
}

// Threads divide the channels, not the rows: tokens repeat, channels do not, and each sum is in the
// order of the rows for any number of threads.
template <typename T>
void compute(const EmbeddingBackward& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  LATHE_CHECK(args.dx_btc.shape.rank == 3);
  const int64_t seq_len = args.dx_btc.shape[1], channels = args.dx_btc.shape[2];
  const int64_t rows = args.dx_btc.shape[0] * seq_len, positions = rows_of(args.dwpe_tc);
  check_matrix(args.dx_btc, dtype_of<T>, rows, channels, "dx");
  check_matrix(args.dwte_vc, dtype_of<A>, rows_of(args.dwte_vc), channels, "dwte");
  check_matrix(args.dwpe_tc, dtype_of<A>, positions, channels, "dwpe");
  LATHE_CHECK(positions >= seq_len, "{} positions for {} tokens", positions, seq_len);
  check_tokens(args.tokens_bt, rows, rows_of(args.dwte_vc));
  const DropoutMask mask(args.dropout);
  const T* dx = args.dx_btc.as<T>();
  A *dwte = args.dwte_vc.as<A>(), *dwpe = args.dwpe_tc.as<A>();
  const int32_t* tokens = args.tokens_bt.as<int32_t>();
  const uint64_t first_row = mask.first_sequence() * static_cast<uint64_t>(seq_len);
  constexpr int64_t kChannelBlock = 64;
  static_assert(kChannelBlock <= kMaskChunk);
  const int64_t blocks = ceil_div(channels, kChannelBlock);
  parallel_for(blocks, (rows + (args.accumulate ? 0 : positions)) * channels, [&](int64_t block) {
    const int64_t c0 = block * kChannelBlock, count = std::min(kChannelBlock, channels - c0);
    A gradient[kChannelBlock];
    if (!args.accumulate) {
      for (int64_t t = 0; t < positions; ++t) std::fill_n(dwpe + t * channels + c0, count, A(0));
    }
    for (int64_t n = 0; n < rows; ++n) {
      const uint64_t row = first_row + static_cast<uint64_t>(n);
      undropped(dx + n * channels + c0, mask, row * channels + c0, count, gradient);
      A* to_token = dwte + tokens[n] * channels + c0;
      A* to_position = dwpe + n % seq_len * channels + c0;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        to_token[i] += gradient[i];
        to_position[i] += gradient[i];
      }
    }
  });
}

LATHE_CPU_OPERATION(EmbeddingForward)
LATHE_CPU_OPERATION(EmbeddingBackward)

}  // namespace lathe::cpu
