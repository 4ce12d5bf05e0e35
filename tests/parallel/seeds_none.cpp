#include "tests/parallel/seeds.h"

namespace lathe::testing {

bool over_stand_ins() {
  return false;
}
void set_stream_seed(uint64_t) {}

}  // namespace lathe::testing
