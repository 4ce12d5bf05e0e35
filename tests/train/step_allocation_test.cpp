// A step in steady state allocates no heap memory: this binary counts calls of malloc. oneDNN may
// allocate scratch memory for its products on some CPUs.
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "src/train.h"
#include "tests/model/harness.h"

namespace {

std::atomic<long> allocations{0};
std::atomic<size_t> largest{0};

bool lies_in_one_dnn(const void* caller) {
  Dl_info library{};
  return dladdr(caller, &library) != 0 && library.dli_fname != nullptr &&
         std::strstr(library.dli_fname, "libdnnl") != nullptr;
}

void note(size_t bytes, const void* caller) {
  if (lies_in_one_dnn(caller)) return;
  ++allocations;
  if (bytes > largest) largest = bytes;  // at most one thread at a time allocates much
}

}  // namespace

// glibc's own entry points, which the counting ones call.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
  note(bytes, __builtin_return_address(0));
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  note(count * bytes, __builtin_return_address(0));
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  note(bytes, __builtin_return_address(0));
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  note(bytes, __builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  note(bytes, __builtin_return_address(0));
  *memory = __libc_memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
}

namespace lathe::testing {
namespace {

struct Count {
  long allocations;
  size_t largest;
};

// The allocations of steps 3 to 5, each with two micro-steps.
Count count_of_steps(DType dtype) {
  const ModelConfig config{
      .n_layer = 2, .n_head = 4, .n_embd = 64, .vocab_size = 300, .seq_len = 40, .dropout = 0.1f};
  Harness run(config, {.dtype = dtype, .batch_size = 3, .seq_len = 40, .micro_steps = 2});
  run.random_batch(1);
  const auto step = [&run] {
    run.state.begin(run.model.ops(), run.inputs);
    run.trainer.clocks[0].begin();
    run.device->replay(0, [&run] { enqueue_step(run.trainer, 0); });
    run.state.request_results();
    return run.state.collect_results();
  };
  for (int i = 0; i < 2; ++i) step();
  const long before = allocations;
  largest = 0;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(step().skip, 0);
  return {allocations - before, largest};
}

TEST(StepAllocations, AreCounted) {
  const long before = allocations;
  void* volatile memory = std::malloc(1);  // volatile, or the compiler removes the pair
  std::free(memory);
  EXPECT_GT(allocations, before);
}

TEST(StepAllocations, NoneInOurCode) {
  EXPECT_EQ(count_of_steps(DType::fp64).allocations, 0);  // never oneDNN's
}

TEST(StepAllocations, NoneButTheBookkeepingOfOneDnn) {
  const bool one_dnn = make_cpu_device()->name().find("oneDNN") != std::string::npos;
  for (DType dtype : {DType::fp32, DType::bf16}) {
    const Count count = count_of_steps(dtype);
    EXPECT_LE(count.largest, one_dnn ? 1024u : 0u) << name_of(dtype);
    if (!one_dnn) {
      EXPECT_EQ(count.allocations, 0) << name_of(dtype);
    }
  }
}

}  // namespace
}  // namespace lathe::testing
