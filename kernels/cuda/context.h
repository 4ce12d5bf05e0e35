// What every operation on the GPU receives.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device/tensor.h"

namespace lathe {
class PartObserver;
}

namespace lathe::cuda {

class Matmul;

struct Context {
  cudaStream_t stream = nullptr;             // all work goes here, in order
  Matmul* matmul = nullptr;                  // matrix products by cuBLASLt
  int multiprocessors = 1;                   // of the device; sizes grids of persistent blocks
  size_t shared_bytes_of_block = 48 * 1024;  // the most that a kernel may request
  bool has_wgmma = false;                    // Hopper's products of warpgroups
  PartObserver* parts = nullptr;  // receives the parts of operations; may be null (parts.h)
};

// Maps the host's number types to the kernels': float, and bf16 to __nv_bfloat16.
template <typename T>
struct host_type_t {
  using type = T;
};
template <>
struct host_type_t<__nv_bfloat16> {
  using type = bf16;
};
template <typename T>
using HostType = typename host_type_t<T>::type;
template <typename T>
inline constexpr DType kernel_dtype = dtype_of<HostType<T>>;

// The tensor's elements as a kernel takes them; null if it is absent. Checks the number type.
template <typename T>
T* data(const Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.as<HostType<T>>());
}

}  // namespace lathe::cuda
