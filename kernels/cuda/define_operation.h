// Turns an operation's file into an entry of the GPU's table. The file defines, in lathe::cuda,
//
//   template <typename T>
//   void compute(const Args& args, const Context& context, const Tensor& workspace);
//   template <typename T>  // if it needs a workspace
//   size_t workspace_of(const Args& args, const Context& context);
//
// and ends with LATHE_CUDA_OPERATION(Args), which turns them into run() and workspace_bytes().
#pragma once

#include "kernels/cuda/operations.h"

namespace lathe::cuda {

template <typename T, typename Args>
size_t workspace_of(const Args&, const Context&) {
  return 0;
}

#define LATHE_CUDA_OPERATION_ON(T, Args)                                           \
  template <>                                                                      \
  void run<T>(const Args& args, const Context& context, const Tensor& workspace) { \
    compute<T>(args, context, workspace);                                          \
  }                                                                                \
  template <>                                                                      \
  size_t workspace_bytes<T>(const Args& args, const Context& context) {            \
    return workspace_of<T>(args, context);                                         \
  }
#define LATHE_CUDA_OPERATION(Args)     \
  LATHE_CUDA_OPERATION_ON(float, Args) \
  LATHE_CUDA_OPERATION_ON(__nv_bfloat16, Args)

}  // namespace lathe::cuda
