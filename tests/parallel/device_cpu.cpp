// Ranks on CPUs.
#include "tests/parallel/harness.h"

namespace lathe::testing {

std::unique_ptr<Device> make_test_device() {
  return make_cpu_device();
}

std::vector<std::string> kinds_under_test() {
  return {"mpi"};
}

}  // namespace lathe::testing
