// The CPU as the device under test.
#include "tests/model/harness.h"

namespace lathe::testing {

std::unique_ptr<Device> make_test_device(DType) {
  return make_cpu_device();
}

}  // namespace lathe::testing
