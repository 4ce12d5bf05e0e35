// A GPU as the device under test; or the CPU that plays one.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {

Device& device_under_test() {
  static const std::unique_ptr<Device> device = make_cuda_device();
  return *device;
}

void* allocate_visible(size_t bytes) {
  device_under_test();  // chooses the GPU
  void* memory = nullptr;
  cuda::check_cuda(cudaMallocManaged(&memory, bytes), "visible memory");
  return memory;
}

void release_visible(void* memory) noexcept {
  cudaFree(memory);
}

bool looks_at_values() {
  return false;
}

}  // namespace lathe::testing
