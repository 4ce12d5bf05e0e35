// Replaces kernels/cuda in a build without CUDA.
#include "kernels/device/device.h"

namespace lathe {

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions&) {
  throw UserError("--device cuda: this build has no CUDA; use --device cpu, or build with nvcc");
}

int cuda_device_count() {
  return 0;
}

}  // namespace lathe
