// Turns the file of an operation into an entry of the CPU's table. The file defines, in lathe::cpu,
//
//   template <typename T>
//   void compute(const Args& args, MatmulContext& matmul, const Tensor& workspace);
//   template <typename T>  // if it needs a workspace
//   size_t workspace_of(const Args& args, MatmulContext& matmul);
//
// and ends with LATHE_CPU_OPERATION(Args), which turns them into run() and workspace_bytes().
#pragma once

#include "kernels/cpu/operations.h"

namespace lathe::cpu {

template <typename T, typename Args>
size_t workspace_of(const Args&, MatmulContext&) {
  return 0;
}

#define LATHE_CPU_OPERATION_ON(T, Args)                                           \
  template <>                                                                     \
  void run<T>(const Args& args, MatmulContext& matmul, const Tensor& workspace) { \
    compute<T>(args, matmul, workspace);                                          \
  }                                                                               \
  template <>                                                                     \
  size_t workspace_bytes<T>(const Args& args, MatmulContext& matmul) {            \
    return workspace_of<T>(args, matmul);                                         \
  }
#define LATHE_CPU_OPERATION(Args)     \
  LATHE_CPU_OPERATION_ON(float, Args) \
  LATHE_CPU_OPERATION_ON(bf16, Args)  \
  LATHE_CPU_OPERATION_ON(double, Args)

}  // namespace lathe::cpu
