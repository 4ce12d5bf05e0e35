// Logits of a few rows, for sampling: logits[n, v] = sum over c of x[n, c] wte[v, c].
//
// Layout: x [N, C], wte [V, C], logits fp32 [N, vocab_size], dense. A warp owns a row of wte: it
// reads it once, 16 bytes a lane, and multiplies it by up to four rows of x, which L1 holds. Sums
// in fp32.
//
// Roofline: bound by reading wte, S V C bytes for 2 N V C FLOPs, as long as N is small. For many
// rows a matrix product on tensor cores would be better.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kWarps = 8;     // per block
constexpr int kMostRows = 4;  // rows of x that a warp multiplies at a time

template <typename T>
struct Product {
  float* logits;
  const T *x, *wte;
  int64_t rows, channels, vocab_size;
};

template <typename T, int kRows, int kN>
__global__ void __launch_bounds__(kWarps* kWarp) logits_kernel(Product<T> p) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (v >= p.vocab_size) return;  // whole warps
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  float sums[kRows] = {};
#pragma unroll 2
  for (int64_t c = lane * kN; c < p.channels; c += kWarp * kN) {
    float weight[kN], x[kN];
    load_floats(p.wte + v * p.channels + c, weight);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= p.rows) continue;
      load_floats(p.x + (first + r) * p.channels + c, x);
#pragma unroll
      for (int i = 0; i < kN; ++i) sums[r] += x[i] * weight[i];
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_reduce(sums[r], Sum());
    if (lane == 0 && first + r < p.rows) p.logits[(first + r) * p.vocab_size + v] = sum;
  }
}

}  // namespace

template <typename T>
void compute(const Logits& args, const Context& context, const Tensor&) {
  const int64_t rows = rows_of(args.x_nc), channels = columns_of(args.x_nc);
  check_matrix(args.x_nc, kernel_dtype<T>, rows, channels, "x");
  check_matrix(args.wte_vc, kernel_dtype<T>, rows_of(args.wte_vc), channels, "wte");
  check_matrix(args.logits_nv, DType::fp32, rows, args.vocab_size, "logits");
  LATHE_CHECK(args.vocab_size > 0 && args.vocab_size <= rows_of(args.wte_vc));
  const Product<T> p{data<float>(args.logits_nv),
                     data<T>(args.x_nc),
                     data<T>(args.wte_vc),
                     rows,
                     channels,
                     args.vocab_size};
  const auto launch_rows = [&]<int kRows, int kN>() {
    launch(logits_kernel<T, kRows, kN>,
           {dim3(static_cast<unsigned>(ceil_div(args.vocab_size, kWarps)),
                 static_cast<unsigned>(ceil_div(rows, kRows))),
            dim3(kWarps * kWarp)},
           context.stream, p);
  };
  if (!can_vectorize(channels, p.x, p.wte)) {
    launch_rows.template operator()<kMostRows, 1>();
  } else if (rows == 1) {
    launch_rows.template operator()<1, kVectorWidth>();
  } else {
    launch_rows.template operator()<kMostRows, kVectorWidth>();
  }
}

LATHE_CUDA_OPERATION(Logits)

}  // namespace lathe::cuda
