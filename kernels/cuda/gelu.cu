// GELU and its backward pass, elementwise: y = gelu(x), dx = dy gelu'(x).
//
// Layout: flat. Each thread takes 8 neighbours, 16 bytes a load; the last ones of an odd number one
// by one. Roofline: bound by memory, 2 S bytes an element forward and 3 S backward with S =
// sizeof(T), for some 25 and 40 FLOPs.
#include <cuda_bf16.h>

#include "kernels/check.h"
#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/vec.cuh"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256;

template <typename T>
struct Elements {
  T* out;
  const T *x, *dy;  // dy is null in the forward pass, and may be `out`
  int64_t count;
};

template <typename T, Gelu kGelu, int kN>
__device__ __forceinline__ void apply(const Elements<T>& p, int64_t at) {
  float x[kN], out[kN];
  load_floats(p.x + at, x);
  if (p.dy) {
    load_floats(p.dy + at, out);
#pragma unroll
    for (int i = 0; i < kN; ++i) out[i] = __fmul_rn(out[i], gelu_gradient<kGelu>(x[i]));
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) out[i] = gelu<kGelu>(x[i]);
  }
  store_floats(out, p.out + at);
}

template <typename T, Gelu kGelu>
__global__ void __launch_bounds__(kThreads) gelu_kernel(Elements<T> p, bool aligned) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEight;
  if (aligned && at + kEight <= p.count) {
    apply<T, kGelu, kEight>(p, at);
  } else {
    for (int64_t i = at; i < p.count && i < at + kEight; ++i) apply<T, kGelu, 1>(p, i);
  }
}

template <typename T>
void launch_gelu(Gelu gelu, const Elements<T>& p, cudaStream_t stream) {
  LATHE_CHECK(gelu != Gelu::none);
  const LaunchShape shape{dim3(static_cast<unsigned>(ceil_div(p.count, kThreads * kEight))),
                          dim3(kThreads)};
  const bool aligned = eights(0, p.out, p.x, p.dy);
  if (gelu == Gelu::exact) {
    launch(gelu_kernel<T, Gelu::exact>, shape, stream, p, aligned);
  } else {
    launch(gelu_kernel<T, Gelu::tanh>, shape, stream, p, aligned);
  }
}

}  // namespace

template <typename T>
void gelu_forward(const GeluForward& args, const Context& context) {
  const int64_t elements = args.x.elements();
  check_vector(args.x, kernel_dtype<T>, elements, "x");
  check_vector(args.y, kernel_dtype<T>, elements, "y");
  launch_gelu(args.gelu, Elements<T>{data<T>(args.y), data<T>(args.x), nullptr, elements},
              context.stream);
}

template <typename T>
void gelu_backward(const GeluBackward& args, const Context& context) {
  const int64_t elements = args.x.elements();
  check_vector(args.x, kernel_dtype<T>, elements, "x");
  check_vector(args.dy, kernel_dtype<T>, elements, "dy");
  check_vector(args.dx, kernel_dtype<T>, elements, "dx");
  launch_gelu(args.gelu, Elements<T>{data<T>(args.dx), data<T>(args.x), data<T>(args.dy), elements},
              context.stream);
}

template void gelu_forward<float>(const GeluForward&, const Context&);
template void gelu_forward<__nv_bfloat16>(const GeluForward&, const Context&);
template void gelu_backward<float>(const GeluBackward&, const Context&);
template void gelu_backward<__nv_bfloat16>(const GeluBackward&, const Context&);

}  // namespace lathe::cuda
