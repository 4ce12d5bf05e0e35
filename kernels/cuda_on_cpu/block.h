// Runs the blocks of a kernel one after another, with their threads as fibers.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>

#include "kernels/cuda_on_cpu/random.h"

namespace lathe::cuda_on_cpu {

struct KernelLaunch {
  const void* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  std::function<void()> thread_body;
};

// Runs every block, in an order drawn from `random`. Returns an error or an empty string. Errors
// are a synchronization that not all threads reach, or a write past the shared memory.
// AddressSanitizer detects other addresses out of range; before its report, a line names the
// thread.
std::string run_kernel(const KernelLaunch& launch, Random& random);

// The demangled name of a function, from the program's symbol table.
std::string function_name(const void* function);

// Its mangled name, and the name (without folders) of the source file that it is local to.
struct FunctionSymbol {
  std::string name, file;
};
FunctionSymbol function_symbol(const void* function);

}  // namespace lathe::cuda_on_cpu
