// Replaces operator new for the whole program, so it is in a file of its own.
#include "tests/allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<size_t> bytes_so_far{0};
}  // namespace

void* operator new(size_t bytes) {
  bytes_so_far += bytes;
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

size_t lathe::testing::allocated_bytes() {
  return bytes_so_far;
}
