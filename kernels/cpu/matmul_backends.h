// The implementations behind MatmulContext, for matmul.cpp alone. Arguments have been checked; m
// and n are at least 1, and so is k but for plain code. `workspace` is 64-byte aligned and holds
// what the implementation asked for.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/cpu/matmul.h"

namespace lathe::cpu {

// Plain code: blocked, packed, vectorised by the compiler. The order of every sum depends on the
// shape alone.
template <typename T, typename TOut>
size_t plain_workspace_bytes(const MatmulArgs<T, TOut>& args);
template <typename T, typename TOut>
void plain_matmul(const MatmulArgs<T, TOut>& args, void* workspace);

// oneDNN, with the primitives it has made so far. matmul_no_onednn.cpp takes the place of
// matmul_onednn.cpp where the build has none: nothing is supported then.
class OneDnnMatmul {
 public:
  OneDnnMatmul();
  ~OneDnnMatmul();
  static std::string version();  // empty where the build has none
  static bool supports_bf16();   // at a speed worth having
  template <typename T, typename TOut>
  size_t workspace_bytes(const MatmulArgs<T, TOut>& args);
  template <typename T, typename TOut>
  void run(const MatmulArgs<T, TOut>& args, void* workspace);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// lathe's AMX kernel for bf16. matmul_no_amx.cpp takes its place on other architectures.
bool amx_available();
template <typename TOut>
size_t amx_workspace_bytes(const MatmulArgs<bf16, TOut>& args);
template <typename TOut>
void amx_matmul(const MatmulArgs<bf16, TOut>& args, void* workspace);

}  // namespace lathe::cpu
