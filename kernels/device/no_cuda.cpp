// Replaces kernels/cuda in a build without CUDA.
#include "kernels/device/device.h"

namespace lathe {

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions&) {
  throw UserError(
      "--device cuda: this build knows no GPU; use --device cpu, or build where nvcc is found");
}

int cuda_device_count() {
  return 0;
}

}  // namespace lathe
