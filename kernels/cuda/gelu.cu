// GELU and its backward pass, elementwise: y = gelu(x), dx = dy gelu'(x); and, if the caller wants
// them, the column sums of the rounded dx.
//
// Layout: flat. Each thread takes 8 neighbours, 16 bytes a load; a remainder is taken one by one.
// With sums, a block of 32 x 8 threads takes 32 V columns (V = 8, or 1 if rows are not aligned) and
// strides over groups of eight rows; a thread loads two of its rows at a time. The block's sums go
// to the workspace, [blocks, columns], and add_partials adds them. There are as many blocks as the
// GPU holds at once: their number depends only on the shape and the kind of GPU. All loads come
// before the arithmetic.
//
// Roofline: memory-bound, 2 S bytes an element forward and 3 S backward with S = sizeof(T), for
// some 25 and 40 FLOPs.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/define_operation.h"
#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/vec.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256;

// ---- Forward.

template <typename T>
struct Forward {
  T* y;
  const T* x;
  int64_t count;
};

template <Gelu kGelu, int kN, typename T>
__device__ __forceinline__ void activate(const T* from, T* to) {
  float x[kN];
  load_floats(from, x);
#pragma unroll
  for (int i = 0; i < kN; ++i) x[i] = gelu<kGelu>(x[i]);
  store_floats(x, to);
}

template <typename T, Gelu kGelu>
__global__ void __launch_bounds__(kThreads) forward_kernel(Forward<T> p, bool aligned) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVectorWidth;
  if (aligned && at + kVectorWidth <= p.count) {
    activate<kGelu, kVectorWidth>(p.x + at, p.y + at);
  } else {
    for (int64_t i = at; i < p.count && i < at + kVectorWidth; ++i)
      activate<kGelu, 1>(p.x + i, p.y + i);
  }
}

// ---- Backward.

template <typename T>
struct Backward {
  T* dx;
  const T *x, *dy;  // dy may be dx
  int64_t count;    // of elements
};

// kN elements of x and dy, as loaded.
template <typename T, int kN>
struct Operands {
  Stored<T, kN> x, dy;

  __device__ __forceinline__ void load(const Backward<T>& p, int64_t at) {
    x.load(p.x + at);
    dy.load(p.dy + at);
  }
  template <Gelu kGelu>
  __device__ __forceinline__ Stored<T, kN> gradient() const {
    Stored<T, kN> dx;
#pragma unroll
    for (int i = 0; i < kN; ++i) dx.set(i, __fmul_rn(dy.at(i), gelu_gradient<kGelu>(x.at(i))));
    return dx;
  }
};

template <typename T, Gelu kGelu>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward<T> p, bool aligned) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVectorWidth;
  if (aligned && at + kVectorWidth <= p.count) {
    Operands<T, kVectorWidth> operands;
    operands.load(p, at);
    operands.template gradient<kGelu>().store(p.dx + at);
  } else {
    for (int64_t i = at; i < p.count && i < at + kVectorWidth; ++i) {
      Operands<T, 1> operands;
      operands.load(p, i);
      operands.template gradient<kGelu>().store(p.dx + i);
    }
  }
}

// Blocks that a multiprocessor holds at once: the launch bound, and what the grid is sized by.
constexpr int kSumBlocks = 3;
constexpr int kRowsAtOnce = 2;  // rows per thread

template <typename T, Gelu kGelu, int V>
__global__ void __launch_bounds__(kWarp* kColumnRows, kSumBlocks)
    backward_sums_kernel(Backward<T> p, float* partials, int64_t columns) {
  const int64_t column = (int64_t{blockIdx.x} * kWarp + threadIdx.x) * V;
  const int64_t stride = int64_t{gridDim.y} * kColumnRows * columns;  // from a row to the next
  const int64_t first = (int64_t{blockIdx.y} * kColumnRows + threadIdx.y) * columns + column;
  float sums[V] = {};
  if (column < columns) {
    for (int64_t at = first; at < p.count; at += kRowsAtOnce * stride) {
      Operands<T, V> operands[kRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r)
        if (at + r * stride < p.count) operands[r].load(p, at + r * stride);
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (at + r * stride >= p.count) break;
        const Stored<T, V> dx = operands[r].template gradient<kGelu>();
        dx.store(p.dx + at + r * stride);
#pragma unroll
        for (int i = 0; i < V; ++i) sums[i] += dx.at(i);
      }
    }
  }
  add_up_columns(sums, partials + int64_t{blockIdx.y} * columns, columns, false);
}

// ---- Launchers.

// Calls run.template operator()<kGelu>().
template <typename Run>
void with_gelu(Gelu gelu, const Run& run) {
  LATHE_CHECK(gelu != Gelu::none);
  if (gelu == Gelu::exact) {
    run.template operator()<Gelu::exact>();
  } else {
    run.template operator()<Gelu::tanh>();
  }
}

LaunchShape flat_shape(int64_t count) {
  return {dim3(static_cast<unsigned>(ceil_div(count, kThreads * kVectorWidth))), dim3(kThreads)};
}

// Blocks along the rows, each with partial sums of its own. Depends on the shape alone, so that
// planning, which has no addresses, gets the same number.
int64_t sum_blocks(int64_t rows, int64_t columns, const Context& context) {
  const int64_t across =
      ceil_div(columns, columns % kVectorWidth == 0 ? kWarp * kVectorWidth : kWarp);
  const int64_t held = int64_t{context.multiprocessors} * kSumBlocks;
  return std::clamp<int64_t>(held / across, 1, std::max<int64_t>(1, ceil_div(rows, kColumnRows)));
}

template <typename T, Gelu kGelu, int V>
void launch_sums(const Backward<T>& p, float* partials, int64_t columns, int64_t blocks,
                 cudaStream_t stream) {
  const LaunchShape shape{
      dim3(static_cast<unsigned>(ceil_div(columns, kWarp * V)), static_cast<unsigned>(blocks)),
      dim3(kWarp, kColumnRows), column_sums_shared<V>};
  launch(backward_sums_kernel<T, kGelu, V>, shape, stream, p, partials, columns);
}

}  // namespace

template <typename T>
void compute(const GeluForward& args, const Context& context, const Tensor&) {
  const int64_t elements = args.x.elements();
  check_vector(args.x, kernel_dtype<T>, elements, "x");
  check_vector(args.y, kernel_dtype<T>, elements, "y");
  const Forward<T> p{data<T>(args.y), data<T>(args.x), elements};
  with_gelu(args.gelu, [&]<Gelu kGelu>() {
    launch(forward_kernel<T, kGelu>, flat_shape(elements), context.stream, p,
           can_vectorize(0, p.y, p.x));
  });
}

template <typename T>
size_t workspace_of(const GeluBackward& args, const Context& context) {
  if (!is_planned(args.dx_sums_i)) return 0;
  const int64_t columns = columns_of(args.dx);
  return static_cast<size_t>(sum_blocks(rows_of(args.dx), columns, context) * columns) *
         sizeof(float);
}

template <typename T>
void compute(const GeluBackward& args, const Context& context, const Tensor& workspace) {
  const int64_t elements = args.x.elements();
  check_vector(args.x, kernel_dtype<T>, elements, "x");
  check_vector(args.dy, kernel_dtype<T>, elements, "dy");
  check_vector(args.dx, kernel_dtype<T>, elements, "dx");
  const Backward<T> p{data<T>(args.dx), data<T>(args.x), data<T>(args.dy), elements};
  if (!args.dx_sums_i) {
    with_gelu(args.gelu, [&]<Gelu kGelu>() {
      launch(backward_kernel<T, kGelu>, flat_shape(elements), context.stream, p,
             can_vectorize(0, p.dx, p.x, p.dy));
    });
    return;
  }
  const int64_t columns = columns_of(args.dx);
  check_vector(args.dx_sums_i, DType::fp32, columns, "dx_sums");
  check_workspace(workspace, workspace_of<T>(args, context));
  auto* const partials = static_cast<float*>(workspace.data);
  const int64_t blocks = sum_blocks(rows_of(args.dx), columns, context);
  with_gelu(args.gelu, [&]<Gelu kGelu>() {
    if (can_vectorize(columns, p.dx, p.x, p.dy)) {
      launch_sums<T, kGelu, kVectorWidth>(p, partials, columns, blocks, context.stream);
    } else {
      launch_sums<T, kGelu, 1>(p, partials, columns, blocks, context.stream);
    }
  });
  add_partials({data<float>(args.dx_sums_i)}, partials, blocks, columns, args.accumulate,
               context.stream);
}

LATHE_CUDA_OPERATION(GeluForward)
LATHE_CUDA_OPERATION(GeluBackward)

}  // namespace lathe::cuda
