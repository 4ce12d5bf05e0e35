// The implementations behind MatmulContext, for matmul.cpp alone. Arguments have been checked. m
// and n are at least 1; so is k, except for plain code. `workspace` is 64-byte aligned and has the
// size that the implementation requested.
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

// oneDNN, with the primitives it has created so far. Without oneDNN, matmul_no_onednn.cpp replaces
// matmul_onednn.cpp, and nothing is supported.
class OneDnnMatmul {
 public:
  OneDnnMatmul();
  ~OneDnnMatmul();
  static std::string version();  // empty if the build has none
  static bool supports_bf16();   // at a useful speed
  template <typename T, typename TOut>
  size_t workspace_bytes(const MatmulArgs<T, TOut>& args);
  template <typename T, typename TOut>
  void run(const MatmulArgs<T, TOut>& args, void* workspace);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// lathe's AMX kernel for bf16. On other architectures matmul_no_amx.cpp replaces it.
bool amx_available();
template <typename TOut>
size_t amx_workspace_bytes(const MatmulArgs<bf16, TOut>& args);
template <typename TOut>
void amx_matmul(const MatmulArgs<bf16, TOut>& args, void* workspace);

}  // namespace lathe::cpu
