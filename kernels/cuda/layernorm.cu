// LayerNorm, with the residual addition and its dropout.
//
//   forward:   r = residual_in + dropout(x);  out = (r - mean) rstd weight + bias, of the rounded r
//   backward:  with d = dout, hat = (r - mean) rstd, g = d weight:
//              d_residual (+)= rstd (g - mean(g) - hat mean(g hat));  dx = dropout'(d_residual)
//              dweight (+)= sum over rows of d hat;  dbias (+)= sum over rows of d
//              dx_sums (+)= sum over rows of dx, rounded (of d_residual without dropout)
//
// Layout: rows [N, C], dense; mean and rstd fp32 [N].
//
// A row is read once, 16 bytes a load. Forward: it stays in registers; C a multiple of 8 up to 1024
// by one warp, up to 8192 by one block of 256 threads. Backward: C a multiple of 8 up to 5120 by as
// many warps as it fills; narrow rows share a block. While a thread computes a row, cp.async copies
// its part of the next two rows (one in fp32) to shared memory. Thread t of a row holds elements
// 8 (t + k threads) .. + 7. Other widths, and rows that do not fit into shared memory, take a block
// that reads the row once per pass, mostly from L1.
//
// Roofline: both are memory-bound. With S = sizeof(T), forward moves 4 S N C bytes (2 S without x),
// backward 4 S N C (3 S if fresh; S more with dropout), for some 10 and 20 FLOPs an element.
//
// Sums over rows: there are as many blocks as the GPU holds at once. Each keeps sums over its own
// rows in registers and writes them to the workspace, [blocks, 3, C]; a second kernel adds them in
// a fixed order. The number of blocks depends only on the shape and the kind of GPU.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr float kEpsilon = 1e-5f;
constexpr int kWide = 256;       // threads of a block that share a row
constexpr int kForwardRows = 4;  // rows per block, one per warp
constexpr int kForwardItems = 4;
constexpr int kSums = 3;  // over rows: of dweight, of dbias, of dx

// ---- Shared by both passes.

// A thread's row and its position in it: blockDim is (threads per row, rows per block).
__device__ __forceinline__ int64_t row_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// A sum over the threads that share a row.
template <int kThreads>
__device__ __forceinline__ float row_sum(float value) {
  return block_reduce<kThreads>(value, reinterpret_cast<float*>(ptx::shared_memory()), Sum());
}

// The mask element of a micro-batch's first element.
__device__ __forceinline__ uint64_t first_element(const StepInputs& step, int64_t sequence) {
  return step.first_sequence * static_cast<uint64_t>(sequence);
}

// ---- Forward.

template <typename T>
struct Forward {
  T *out, *residual_out;
  float *mean, *rstd;
  const T *x, *residual_in, *weight, *bias;  // x and residual_out, and bias, may be null
  DropoutMask mask;
  int64_t rows, channels, sequence;  // sequence: elements per sequence, T C
};

// kN elements to normalise, rounded to T, and stored if they are a sum.
template <typename T, int kN>
__device__ __forceinline__ void load_residual(const Forward<T>& p, const StepInputs& step,
                                              int64_t at, float (&r)[kN]) {
  load_floats(p.residual_in + at, r);
  if (!p.x) return;
  float x[kN];
  load_floats(p.x + at, x);
  if (p.mask.active) {
    float factor[kN];
    p.mask.factors(step, first_element(step, p.sequence) + static_cast<uint64_t>(at), factor);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] *= factor[i];
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) r[i] = rounded<T>(r[i] + x[i]);
  store_floats(r, p.residual_out + at);
}

template <typename T, int kN>
__device__ __forceinline__ void normalise(const Forward<T>& p, const float (&r)[kN], float mean,
                                          float rstd, int64_t row, int64_t c) {
  float weight[kN], bias[kN], out[kN];
  load_floats(p.weight + c, weight);
  if (p.bias) load_floats(p.bias + c, bias);
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const float hat = (r[i] - mean) * rstd;
    out[i] = p.bias ? hat * weight[i] + bias[i] : hat * weight[i];
  }
  store_floats(out, p.out + row * p.channels + c);
}

template <typename T, int kThreads, int kItems>
__global__ void __launch_bounds__(kThreads == kWarp ? kWarp * kForwardRows : kThreads)
    forward_kernel(Forward<T> p) {
  const int64_t row = row_of_thread();
  if (row >= p.rows) return;  // whole warps return, or none
  const StepInputs step = p.mask.read_inputs();
  const float size = static_cast<float>(p.channels);
  float r[kItems][kVectorWidth];
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t c = kVectorWidth * (threadIdx.x + k * kThreads);
    if (c < p.channels) load_residual(p, step, row * p.channels + c, r[k]);
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (kVectorWidth * (threadIdx.x + k * kThreads) >= p.channels) continue;
#pragma unroll
    for (int i = 0; i < kVectorWidth; ++i) sum += r[k][i];
  }
  const float mean = row_sum<kThreads>(sum) / size;
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (kVectorWidth * (threadIdx.x + k * kThreads) >= p.channels) continue;
#pragma unroll
    for (int i = 0; i < kVectorWidth; ++i) squares += (r[k][i] - mean) * (r[k][i] - mean);
  }
  const float rstd = 1.0f / sqrtf(row_sum<kThreads>(squares) / size + kEpsilon);
  if (threadIdx.x == 0) p.mean[row] = mean, p.rstd[row] = rstd;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t c = kVectorWidth * (threadIdx.x + k * kThreads);
    if (c < p.channels) normalise(p, r[k], mean, rstd, row, c);
  }
}

// Any width. A thread reads back only what it has written itself.
template <typename T>
__global__ void __launch_bounds__(kWide) forward_any_kernel(Forward<T> p) {
  const int64_t row = blockIdx.x;
  const StepInputs step = p.mask.read_inputs();
  const float size = static_cast<float>(p.channels);
  const T* residual = (p.x ? p.residual_out : p.residual_in) + row * p.channels;
  float r[1];
  float sum = 0;
  for (int64_t c = threadIdx.x; c < p.channels; c += kWide) {
    load_residual(p, step, row * p.channels + c, r);
    sum += r[0];
  }
  const float mean = row_sum<kWide>(sum) / size;
  float squares = 0;
  for (int64_t c = threadIdx.x; c < p.channels; c += kWide) {
    const float centred = to_float(residual[c]) - mean;
    squares += centred * centred;
  }
  const float rstd = 1.0f / sqrtf(row_sum<kWide>(squares) / size + kEpsilon);
  if (threadIdx.x == 0) p.mean[row] = mean, p.rstd[row] = rstd;
  for (int64_t c = threadIdx.x; c < p.channels; c += kWide) {
    r[0] = to_float(residual[c]);
    normalise(p, r, mean, rstd, row, c);
  }
}

// ---- Backward.

template <typename T>
struct Backward {
  T *d_residual, *dx;  // dx may be null
  float* partials;     // [blocks, kSums, C]
  const T *dout, *residual, *weight;
  const float *mean, *rstd;
  DropoutMask mask;
  int64_t rows, channels, sequence;
  bool fresh;
};

// What a row's gradient is computed from, besides its elements.
struct RowFactors {
  float mean, rstd, mean_g, mean_g_hat;
};

// Stores d_residual and dx of kN elements and adds to dx_sums; `d` is d_residual on entry.
template <typename T, int kN>
__device__ __forceinline__ void store_gradient(const Backward<T>& p, const RowFactors& row,
                                               const float (&hat)[kN], const float (&g)[kN],
                                               int64_t at, float (&d)[kN], float (&dx_sums)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i)
    d[i] = rounded<T>(d[i] + row.rstd * (g[i] - row.mean_g - hat[i] * row.mean_g_hat));
  store_floats(d, p.d_residual + at);
  if (p.dx) {
    float factor[kN];
    const StepInputs step = p.mask.read_inputs();
    p.mask.factors(step, first_element(step, p.sequence) + static_cast<uint64_t>(at), factor);
#pragma unroll
    for (int i = 0; i < kN; ++i) d[i] = rounded<T>(d[i] * factor[i]);
    store_floats(d, p.dx + at);
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) dx_sums[i] += d[i];
}

// A thread's sums over its rows, for its items.
template <int kItems>
struct RowSums {
  float at[kSums][kItems][kVectorWidth] = {};
};

// The means of g and of g hat over the threads that share a row; `share` is 1 / C. Two scratches
// alternate, so one barrier per row is enough.
__device__ __forceinline__ void take_means(RowFactors& row, float share, float2* scratch) {
  float2 sum{warp_reduce(row.mean_g, Sum()), warp_reduce(row.mean_g_hat, Sum())};
  if (blockDim.x > kWarp) {  // the same for the whole block
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sum;
    __syncthreads();
    sum = scratch[0];
#pragma unroll 1
    for (unsigned w = 1; w < blockDim.x / kWarp; ++w) {
      sum.x += scratch[w].x;
      sum.y += scratch[w].y;
    }
  }
  row.mean_g = sum.x * share, row.mean_g_hat = sum.y * share;
}

// Adds the sums of a block's rows of threads, in their order, into the block's partials.
template <int kItems>
__device__ void store_partials(float* partials, float* shared, const RowSums<kItems>& own,
                               int64_t channels) {
  const int rows = static_cast<int>(blockDim.y);
  float* sums = rows > 1 ? shared : partials;
  for (int y = 0; y < rows; ++y) {
    if (static_cast<int>(threadIdx.y) == y) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const int64_t c = kVectorWidth * (threadIdx.x + k * blockDim.x);
        if (c >= channels) continue;
#pragma unroll
        for (int i = 0; i < kSums * kVectorWidth; ++i) {
          float& sum = sums[i / kVectorWidth * channels + c + i % kVectorWidth];
          const float value = own.at[i / kVectorWidth][k][i % kVectorWidth];
          sum = y == 0 ? value : sum + value;
        }
      }
    }
    __syncthreads();
  }
  if (rows == 1) return;
  for (int64_t i = threadIdx.y * blockDim.x + threadIdx.x; i < kSums * channels;
       i += blockDim.x * blockDim.y)
    partials[i] = sums[i];
}

// The most threads in a block, and how many such blocks a multiprocessor holds at once with its
// 65,536 registers: the launch bounds, and what the grid is sized by. Widths of 768 to 1,600 have
// one item.
constexpr int kBackwardThreads = 320, kBackwardItems = 2;
template <int kItems>
constexpr int kBackwardBlocks = kItems == 1 ? 2 : 1;
constexpr int kAnyBlocks = 2;  // for the kernel for any width

// What a thread reads of its rows, copied to shared memory ahead of time by cp.async, so that a
// multiprocessor has more bytes under way than its registers could hold. A thread reads only what
// it has copied itself.
template <typename T, int kItems>
class RowsAhead {
 public:
  enum Input : uint8_t { residual, dout, d_residual };
  static constexpr int kAhead = sizeof(T) == 2 ? 2 : 1;  // rows, besides the current one
  static constexpr int kParts = kVectorWidth / kVec<T>, kInputs = 3;
  static constexpr size_t kSlotBytes = 16;
  static constexpr size_t kThreadBytes = (kAhead + 1) * kInputs * kItems * kParts * kSlotBytes;

  explicit __device__ __forceinline__ RowsAhead(unsigned char* memory)
      : memory_(memory), threads_(static_cast<int>(blockDim.x * blockDim.y)) {}

  // Starts to copy a row, columns up to `end`.
  __device__ __forceinline__ void start(const Backward<T>& p, int64_t row, int64_t end) {
    const int64_t at = row * p.channels;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int64_t c = kVectorWidth * (threadIdx.x + k * blockDim.x);
      if (c >= end) continue;
      copy(residual, k, p.residual + at + c);
      copy(dout, k, p.dout + at + c);
      if (!p.fresh) copy(d_residual, k, p.d_residual + at + c);
    }
    ptx::cp_async_commit();
    newest_ = newest_ == kAhead ? 0 : newest_ + 1;
  }
  // Waits for the oldest row that was started.
  __device__ __forceinline__ void arrive() {
    ptx::cp_async_wait<kAhead>();
    current_ = current_ == kAhead ? 0 : current_ + 1;
  }
  __device__ __forceinline__ Stored<T, kVectorWidth> read(Input input, int k) const {
    Stored<T, kVectorWidth> values;
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      values.parts[i] =
          values.parts[i].load(reinterpret_cast<const T*>(slot(current_, input, k, i)));
    return values;
  }

 private:
  __device__ __forceinline__ unsigned char* slot(int row, int input, int k, int part) const {
    const int before = ((row * kInputs + input) * kItems + k) * kParts + part;
    const auto thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    return memory_ + (before * threads_ + thread) * static_cast<int>(kSlotBytes);
  }
  __device__ __forceinline__ void copy(Input input, int k, const T* from) {
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      ptx::cp_async_16(slot(newest_, input, k, i), from + i * kVec<T>);
  }

  unsigned char* memory_;
  int threads_, newest_ = 0, current_ = kAhead;
};

template <typename T, int kItems>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<kItems>)
    backward_kernel(Backward<T> p, int ahead_at) {
  auto* scratch = reinterpret_cast<float2*>(ptx::shared_memory());  // [2, rows, warps per row]
  const int warps = static_cast<int>(blockDim.x * blockDim.y) / kWarp;
  const float share = 1.0f / static_cast<float>(p.channels);
  const int64_t step = gridDim.x * blockDim.y;
  const auto end_of = [&p](int64_t row) { return row < p.rows ? p.channels : 0; };
  RowSums<kItems> sums;
  using Rows = RowsAhead<T, kItems>;
  Rows rows(ptx::shared_memory() + ahead_at);
  int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
#pragma unroll
  for (int i = 0; i < Rows::kAhead; ++i) rows.start(p, row + i * step, end_of(row + i * step));
  int turn = 0;
  for (int64_t first = row - threadIdx.y; first < p.rows; first += step, row += step, turn ^= 1) {
    const int64_t at = row * p.channels, end = end_of(row), later = row + Rows::kAhead * step;
    rows.start(p, later, end_of(later));
    RowFactors factors{};
    if (end > 0) factors = {p.mean[row], p.rstd[row], 0, 0};
    rows.arrive();
    float hat[kItems][kVectorWidth], g[kItems][kVectorWidth];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int64_t c = kVectorWidth * (threadIdx.x + k * blockDim.x);
      if (c >= end) continue;
      float weight[kVectorWidth];
      load_floats(p.weight + c, weight);
      const auto residual = rows.read(Rows::residual, k), dout = rows.read(Rows::dout, k);
#pragma unroll
      for (int i = 0; i < kVectorWidth; ++i) {
        const float d = dout.at(i);
        hat[k][i] = (residual.at(i) - factors.mean) * factors.rstd;
        sums.at[0][k][i] += d * hat[k][i];
        sums.at[1][k][i] += d;
        g[k][i] = d * weight[i];
        factors.mean_g += g[k][i];
        factors.mean_g_hat += g[k][i] * hat[k][i];
      }
    }
    take_means(factors, share, scratch + turn * warps + threadIdx.y * (blockDim.x / kWarp));
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int64_t c = kVectorWidth * (threadIdx.x + k * blockDim.x);
      if (c >= end) continue;
      float d[kVectorWidth] = {};
      if (!p.fresh) {
        const auto d_residual = rows.read(Rows::d_residual, k);
#pragma unroll
        for (int i = 0; i < kVectorWidth; ++i) d[i] = d_residual.at(i);
      }
      store_gradient(p, factors, hat[k], g[k], at + c, d, sums.at[2][k]);
    }
  }
  store_partials(p.partials + static_cast<int64_t>(blockIdx.x) * kSums * p.channels,
                 reinterpret_cast<float*>(scratch + 2 * warps), sums, p.channels);
}

// Any width: a block takes one row at a time and keeps its sums in its partials. Only one thread
// touches each of them.
template <typename T>
__global__ void __launch_bounds__(kWide, kAnyBlocks) backward_any_kernel(Backward<T> p) {
  const float size = static_cast<float>(p.channels);
  float* dweight = p.partials + static_cast<int64_t>(blockIdx.x) * kSums * p.channels;
  float *dbias = dweight + p.channels, *dx_sums = dbias + p.channels;
  for (int64_t c = threadIdx.x; c < kSums * p.channels; c += kWide) dweight[c] = 0;
  __syncthreads();
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    RowFactors factors{p.mean[row], p.rstd[row], 0, 0};
    const int64_t at = row * p.channels;
    const auto hat_of = [&](int64_t c) {
      return (to_float(p.residual[at + c]) - factors.mean) * factors.rstd;
    };
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < p.channels; c += kWide) {
      const float d = to_float(p.dout[at + c]), hat = hat_of(c), g = d * to_float(p.weight[c]);
      dweight[c] += d * hat;
      dbias[c] += d;
      factors.mean_g += g;
      factors.mean_g_hat += g * hat;
    }
    factors.mean_g = row_sum<kWide>(factors.mean_g) / size;
    factors.mean_g_hat = row_sum<kWide>(factors.mean_g_hat) / size;
    for (int64_t c = threadIdx.x; c < p.channels; c += kWide) {
      const float hat[1] = {hat_of(c)};
      const float g[1] = {to_float(p.dout[at + c]) * to_float(p.weight[c])};
      float d[1] = {p.fresh ? 0.0f : to_float(p.d_residual[at + c])}, sum[1] = {dx_sums[c]};
      store_gradient(p, factors, hat, g, at + c, d, sum);
      dx_sums[c] = sum[0];
    }
  }
}

// ---- Launchers.

template <typename T>
void check_forward(const LayerNormForward& args, int64_t rows, int64_t channels) {
  constexpr DType kType = kernel_dtype<T>;
  check_matrix(args.residual_in_btc, kType, rows, channels, "residual_in");
  check_matrix(args.out_btc, kType, rows, channels, "out");
  check_vector(args.mean_bt, DType::fp32, rows, "mean");
  check_vector(args.rstd_bt, DType::fp32, rows, "rstd");
  check_vector(args.weight_c, kType, channels, "weight");
  if (args.bias_c) check_vector(args.bias_c, kType, channels, "bias");
  if (!args.x_btc) return;
  check_matrix(args.x_btc, kType, rows, channels, "x");
  check_matrix(args.residual_out_btc, kType, rows, channels, "residual_out");
}

template <typename T>
void check_backward(const LayerNormBackward& args, int64_t rows, int64_t channels) {
  constexpr DType kType = kernel_dtype<T>;
  check_matrix(args.dout_btc, kType, rows, channels, "dout");
  check_matrix(args.d_residual_btc, kType, rows, channels, "d_residual");
  check_matrix(args.residual_out_btc, kType, rows, channels, "residual_out");
  check_vector(args.mean_bt, DType::fp32, rows, "mean");
  check_vector(args.rstd_bt, DType::fp32, rows, "rstd");
  check_vector(args.weight_c, kType, channels, "weight");
  check_vector(args.dweight_c, DType::fp32, channels, "dweight");
  if (args.dbias_c) check_vector(args.dbias_c, DType::fp32, channels, "dbias");
  if (args.dx_sums_c) check_vector(args.dx_sums_c, DType::fp32, channels, "dx_sums");
  if (args.dropout.p > 0) check_matrix(args.dx_btc, kType, rows, channels, "dx");
  LATHE_CHECK(args.dropout.p > 0 || !args.dx_btc, "without dropout dx is d_residual");
}

// T C, which only dropout needs.
int64_t sequence_elements(const DropoutMask& mask, const Tensor& x_btc) {
  if (!mask.active) return 0;
  LATHE_CHECK(x_btc.shape.rank == 3);
  return x_btc.shape[1] * x_btc.shape[2];
}

// Calls visit.template operator()<threads per row, items per thread>(); false if no instance
// holds a row of this length.
template <typename Visit>
bool with_instance(int64_t channels, const Visit& visit) {
  const int threads = channels <= kWarp * kVectorWidth * kForwardItems ? kWarp : kWide;
  const int64_t items = ceil_div(channels, threads * kVectorWidth);
  const auto of_items = [&]<int kThreads>() {
    if (items == 1) visit.template operator()<kThreads, 1>();
    if (items == 2) visit.template operator()<kThreads, 2>();
    if (items == 3) visit.template operator()<kThreads, 3>();
    if (items == 4) visit.template operator()<kThreads, 4>();
  };
  if (threads == kWarp) {
    of_items.template operator()<kWarp>();
  } else {
    of_items.template operator()<kWide>();
  }
  return items <= kForwardItems;
}

constexpr size_t kReductionBytes = kWide / kWarp * sizeof(float);

unsigned grid_of(int64_t blocks) {
  return static_cast<unsigned>(blocks);
}

// The blocks of the backward pass, each with partials of its own. Depends on the shape and the GPU
// alone, so that planning, which has no addresses, gets the same number.
struct BackwardGrid {
  int items;  // per thread; 0: the kernel for any width
  dim3 block;
  int64_t blocks;
  size_t ahead_at, shared_bytes;  // where RowsAhead begins in shared memory, and all of it
};
template <typename T>
BackwardGrid backward_grid(int64_t rows, int64_t channels, const Context& context) {
  const int64_t loads = ceil_div(channels, kVectorWidth), items = ceil_div(loads, kBackwardThreads);
  const int64_t multiprocessors = context.multiprocessors;
  const BackwardGrid any{0, dim3(kWide), std::min(rows, multiprocessors * kAnyBlocks), 0,
                         kReductionBytes};
  if (channels % kVectorWidth != 0 || items > kBackwardItems) return any;
  // Narrow rows share a block, so that there are fewer partials; but only a few, because they wait
  // for each other at its barriers.
  constexpr int64_t kShared = 192;
  const int64_t threads = ceil_div(ceil_div(loads, items), kWarp) * kWarp;
  const int64_t rows_of_block = std::max<int64_t>(1, kShared / threads);
  const int64_t all_threads = threads * rows_of_block;
  const auto scratch = static_cast<size_t>(2 * all_threads / kWarp) * sizeof(float2);
  const size_t sums = rows_of_block > 1 ? static_cast<size_t>(kSums * channels) * sizeof(float) : 0;
  const auto ahead = static_cast<size_t>(all_threads) *
                     (items == 1 ? RowsAhead<T, 1>::kThreadBytes : RowsAhead<T, 2>::kThreadBytes);
  if (scratch + sums + ahead > context.shared_bytes_of_block) return any;
  const int64_t held =
      int64_t{kBackwardThreads} * (items == 1 ? kBackwardBlocks<1> : kBackwardBlocks<2>);
  return {static_cast<int>(items),
          dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows_of_block)),
          std::min(ceil_div(rows, rows_of_block), multiprocessors * (held / all_threads)),
          scratch + sums, scratch + sums + ahead};
}

}  // namespace

template <typename T>
void compute(const LayerNormForward& args, const Context& context, const Tensor&) {
  const int64_t channels = columns_of(args.residual_in_btc), rows = rows_of(args.residual_in_btc);
  check_forward<T>(args, rows, channels);
  const DropoutMask mask(args.x_btc ? args.dropout : Dropout{});
  const Forward<T> p{data<T>(args.out_btc),
                     data<T>(args.residual_out_btc),
                     data<float>(args.mean_bt),
                     data<float>(args.rstd_bt),
                     data<T>(args.x_btc),
                     data<T>(args.residual_in_btc),
                     data<T>(args.weight_c),
                     data<T>(args.bias_c),
                     mask,
                     rows,
                     channels,
                     sequence_elements(mask, args.x_btc)};
  const auto launch_rows = [&]<int kThreads, int kItems>() {
    constexpr int kRows = kThreads == kWarp ? kForwardRows : 1;
    launch(forward_kernel<T, kThreads, kItems>,
           {dim3(grid_of(ceil_div(rows, kRows))), dim3(kThreads, kRows), kReductionBytes},
           context.stream, p);
  };
  if (can_vectorize(channels, p.out, p.residual_out, p.x, p.residual_in, p.weight, p.bias) &&
      with_instance(channels, launch_rows))
    return;
  launch(forward_any_kernel<T>, {dim3(grid_of(rows)), dim3(kWide), kReductionBytes}, context.stream,
         p);
}

template <typename T>
size_t workspace_of(const LayerNormBackward& args, const Context& context) {
  const int64_t channels = columns_of(args.dout_btc), rows = rows_of(args.dout_btc);
  return static_cast<size_t>(backward_grid<T>(rows, channels, context).blocks * kSums * channels) *
         sizeof(float);
}

template <typename T>
void compute(const LayerNormBackward& args, const Context& context, const Tensor& workspace) {
  const int64_t channels = columns_of(args.dout_btc), rows = rows_of(args.dout_btc);
  check_backward<T>(args, rows, channels);
  check_workspace(workspace, workspace_of<T>(args, context));
  const DropoutMask mask(args.dropout);
  auto* partials = static_cast<float*>(workspace.data);
  const Backward<T> p{data<T>(args.d_residual_btc),
                      data<T>(args.dx_btc),
                      partials,
                      data<T>(args.dout_btc),
                      data<T>(args.residual_out_btc),
                      data<T>(args.weight_c),
                      data<float>(args.mean_bt),
                      data<float>(args.rstd_bt),
                      mask,
                      rows,
                      channels,
                      sequence_elements(mask, args.dx_btc),
                      args.fresh};
  const BackwardGrid grid = backward_grid<T>(rows, channels, context);
  const dim3 blocks(grid_of(grid.blocks));
  const auto launch_rows = [&]<int kItems>() {
    launch(backward_kernel<T, kItems>, {blocks, grid.block, grid.shared_bytes}, context.stream, p,
           static_cast<int>(grid.ahead_at));
  };
  if (grid.items == 0 ||
      !can_vectorize(channels, p.d_residual, p.dx, p.dout, p.residual, p.weight)) {
    launch(backward_any_kernel<T>, {blocks, dim3(kWide), kReductionBytes}, context.stream, p);
  } else if (grid.items == 1) {
    launch_rows.template operator()<1>();
  } else {
    launch_rows.template operator()<2>();
  }
  add_partials(
      {data<float>(args.dweight_c), data<float>(args.dbias_c), data<float>(args.dx_sums_c)},
      partials, grid.blocks, channels, args.accumulate, context.stream);
}

LATHE_CUDA_OPERATION(LayerNormForward)
LATHE_CUDA_OPERATION(LayerNormBackward)

}  // namespace lathe::cuda
