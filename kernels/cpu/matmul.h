// Matrix products on the CPU, with the epilogues that training needs.
//
//   C[m, n] = epilogue(op(A)[m, k] op(B)[k, n])
//
// Everything is row-major with leading dimensions in elements. One call has three implementations:
// lathe's plain code (any machine, any type), oneDNN (fp32 and bf16, if built in), and lathe's AMX
// kernel (bf16 on CPUs with AMX). The choice is a fixed function of the types, the shape and the
// machine, never of a timing, so a resumed run makes the same choice.
// Every implementation gives the same bits for the same number of threads; plain code and AMX give
// the same bits for any number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device/dtype.h"

namespace lathe::cpu {

enum class Activation : uint8_t { none, gelu_tanh, gelu_exact };
enum class MatmulBackend : uint8_t { automatic, plain, onednn, amx };

// One product. (T, TOut) is (float, float), (bf16, bf16), (bf16, float) or (double, double);
// products are summed in Accumulator<T>.
template <typename T, typename TOut>
struct MatmulArgs {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  const T* a = nullptr;  // [m, lda], or [k, lda] when transpose_a
  int64_t lda = 0;
  const T* b = nullptr;  // [k, ldb], or [n, ldb] when transpose_b
  int64_t ldb = 0;
  TOut* c = nullptr;  // [m, ldc]; overlaps no other operand
  int64_t ldc = 0;
  // C += op(A) op(B), for weight gradients: TOut is Accumulator<T>, no activation.
  bool accumulate = false;
  const T* bias = nullptr;  // [n], added to every row before anything is rounded; or null
  // With an activation (TOut is T) the sum is rounded to T first, and the activation reads the
  // rounded value, so C is the same whether pre_activation is kept or not.
  Activation activation = Activation::none;
  T* pre_activation = nullptr;  // [m, ldc]: receives the rounded value; or null
};

inline constexpr size_t kWorkspaceAlignment = 64;

// Runs products and owns what they need between calls: oneDNN's primitives by shape, and the
// workspace. Calls may come from several threads; one runs at a time. After the first call of a
// shape, later calls allocate nothing of their own (oneDNN allocates a few hundred bytes of
// bookkeeping in each execution, which no caller can prevent).
class MatmulContext {
 public:
  // A backend other than `automatic` computes every product that it can; plain code computes the
  // rest. Throws CheckError if the machine or the build lacks the backend.
  explicit MatmulContext(MatmulBackend backend = MatmulBackend::automatic);
  ~MatmulContext();
  MatmulContext(const MatmulContext&) = delete;
  MatmulContext& operator=(const MatmulContext&) = delete;

  template <typename T, typename TOut>
  void run(const MatmulArgs<T, TOut>& args);

  // Bytes of workspace that run(args) needs with the current number of threads. The pointers in
  // args may be null; a null bias or pre_activation means that there is none.
  template <typename T, typename TOut>
  size_t workspace_bytes(const MatmulArgs<T, TOut>& args);

  // The implementation that run(args) uses.
  template <typename T, typename TOut>
  MatmulBackend backend_for(const MatmulArgs<T, TOut>& args) const;

  // Later products use the caller's memory (aligned to kWorkspaceAlignment); one that needs more
  // throws CheckError. Without a loan the context keeps a workspace of its own, which grows on
  // demand.
  void lend_workspace(void* memory, size_t bytes);
  size_t owned_workspace_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

bool matmul_backend_available(MatmulBackend backend);

// The machine's implementations, for the banner: "lathe AMX + oneDNN 2.6.3", "plain code (no
// oneDNN)", ...
std::string matmul_backend_name();

}  // namespace lathe::cpu
