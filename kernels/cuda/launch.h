// Launches kernels, and turns errors of the CUDA runtime into exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/device/error.h"

namespace lathe::cuda {

// Throws CheckError with CUDA's message.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that the next call does not report it
  throw CheckError(
      fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)));
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic shared memory, as ptx::shared_memory() gives it
};

// Runs kernel<<<grid, block, shared_bytes, stream>>>(args...). An empty grid launches nothing.
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Args&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  constexpr size_t kSharedByDefault = 48 * 1024;
  if (shape.shared_bytes > kSharedByDefault) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               "shared memory of a kernel");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), "launch");
}

}  // namespace lathe::cuda
