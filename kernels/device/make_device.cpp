#include "kernels/device/device.h"

namespace lathe {

std::unique_ptr<Device> make_device(std::string_view kind, int threads,
                                    const CudaDeviceOptions& cuda) {
  LATHE_CHECK(kind == "auto" || kind == "cpu" || kind == "cuda", "{}", kind);
  if (kind == "cuda" || (kind == "auto" && cuda_device_count() > 0)) return make_cuda_device(cuda);
  return make_cpu_device(threads);
}

}  // namespace lathe
