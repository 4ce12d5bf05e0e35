#include "tests/cuda_on_cpu/runtime.h"
#include "tests/parallel/seeds.h"

namespace lathe::testing {

bool over_stand_ins() {
  return true;
}
void set_stream_seed(uint64_t seed) {
  cuda_on_cpu::set_seed(seed);
}

}  // namespace lathe::testing
