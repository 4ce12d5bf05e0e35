// Matrix products on the GPU by cuBLASLt, row-major.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "kernels/device/tensor.h"

namespace lathe::cuda {

// d [m, n] = a b (+ bias_n, before rounding) or d += a b, sums in fp32. a is [m, k] in memory, or
// [k, m] where transpose_a; b is [k, n], or [n, k] where transpose_b; leading dimensions are the
// elements from one row to the next, 0 for a dense matrix.
struct MatmulArgs {
  void* d = nullptr;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* bias_n = nullptr;  // of d's type, or absent
  float* sum_of_b_n = nullptr;   // out, fp32 [n], or absent: the column sums of b (bias gradient)
  int64_t m = 0, n = 0, k = 0;
  int64_t ld_d = 0, ld_a = 0, ld_b = 0;
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;
  DType input = DType::fp32, output = DType::fp32;  // (fp32, fp32), (bf16, bf16) or (bf16, fp32)
};

// Plans cached by shape. Not for several threads at once.
class Matmul {
 public:
  // `tf32`: fp32 products may round their inputs to TF32.
  explicit Matmul(bool tf32 = false);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // What every call wants of workspace, whatever its shape.
  static size_t workspace_bytes();

  void run(const MatmulArgs& args, const Tensor& workspace, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lathe::cuda
