// A GPU as the device under test, or CUDA on the CPU.
#include "tests/model/harness.h"

namespace lathe::testing {

std::unique_ptr<Device> make_test_device(DType dtype) {
  return dtype == DType::fp64 ? make_cpu_device() : make_cuda_device({.deterministic = true});
}

}  // namespace lathe::testing
