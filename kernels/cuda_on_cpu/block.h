// Runs the blocks of a kernel, one after the other, their threads as fibers.
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

// Runs every block, in an order drawn from `random`. Returns what went wrong, or an empty string:
// a meeting that not all threads reach, a write past the shared memory. Addresses out of range are
// left to AddressSanitizer, whose report is preceded by a line that names the thread.
std::string run_kernel(const KernelLaunch& launch, Random& random);

// The demangled name of a function, from the program's symbol table.
std::string function_name(const void* function);

// Its mangled name, and the name (without folders) of the source file that it is local to.
struct FunctionSymbol {
  std::string name, file;
};
FunctionSymbol function_symbol(const void* function);

}  // namespace lathe::cuda_on_cpu
