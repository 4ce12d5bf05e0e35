#include "kernels/device/device.h"

namespace lathe {

std::unique_ptr<Device> make_device(DeviceKind kind, int threads, const CudaDeviceOptions& cuda) {
  const bool gpu = kind == DeviceKind::any && cuda_device_count() > 0;
  if (kind == DeviceKind::cuda || gpu) return make_cuda_device(cuda);
  return make_cpu_device(threads);
}

}  // namespace lathe
