// The CPU as the device under test.
#include <cstdlib>

#include "tests/ops/ops_testing.h"

namespace lathe::testing {

Device& device_under_test() {
  return cpu();
}

void* allocate_visible(size_t bytes) {
  return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}

void release_visible(void* memory) noexcept {
  std::free(memory);
}

void* twin_of(void* address) {
  return address;
}

void copy_to_device(const std::vector<void*>&) {}

void copy_to_host(const std::vector<void*>&) {}

void copy_only(void*, size_t) {}

bool looks_at_values() {
  return true;
}

}  // namespace lathe::testing
