// Ranks on CPUs.
#include "tests/comm/harness.h"

namespace lathe::testing {

std::unique_ptr<Device> make_test_device() {
  return make_cpu_device();
}

std::vector<Variant> variants_under_test() {
  return {{CommKind::mpi}};
}

void set_stream_seed(int) {}

}  // namespace lathe::testing
