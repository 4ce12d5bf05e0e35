// Operations allocate nothing once they have run: malloc is counted in this binary.
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "tests/ops/one_step.h"

namespace {

std::atomic<long> allocations{0};

}  // namespace

// glibc's own entry points, which the counting versions call.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
  ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  ++allocations;
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  ++allocations;
  *memory = __libc_memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
}

namespace lathe::testing {
namespace {

TEST(Allocations, AreCounted) {
  const long before = allocations;
  void* volatile memory = std::malloc(1);  // volatile, so that the compiler keeps the pair
  std::free(memory);
  EXPECT_GT(allocations, before);
}

template <typename T>
void count(bool products) {
  OneStep<T> step;
  for (int i = 0; i < 2; ++i) {
    step.run_own();
    if (products) step.run_products();
  }
  const long before = allocations;
  step.run_own();
  if (products) step.run_products();
  EXPECT_EQ(allocations, before) << name_of(dtype_of<T>);
}
TEST(Allocations, NoneInSteadyState) {
  count<float>(false);  // oneDNN's executions allocate bookkeeping of their own
  count<bf16>(false);
  count<double>(true);
}

}  // namespace
}  // namespace lathe::testing
