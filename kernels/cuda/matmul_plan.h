// How cuBLASLt computes products of one shape: what a plan is found by, what was chosen, and both
// as text.
#pragma once

#include <cublasLt.h>

#include <optional>
#include <string>

#include "kernels/cuda/matmul.h"

namespace lathe::cuda {

// What the library insists on for its vectors, and what an epilogue's vector must have.
inline constexpr size_t kLeastAlignment = 16;

// Bytes: the largest power of two that divides the address, at most `most`.
size_t alignment_of(const void* pointer, size_t most);

// What an algorithm may depend on: plans are cached by it.
struct MatmulKey {
  int64_t m, n, k, ldc, lda, ldb;
  bool transpose_a, transpose_b, accumulate;
  DType input, output;
  bool bias;  // that an epilogue can add
  size_t align_c, align_a, align_b;

  bool operator==(const MatmulKey&) const = default;

  // `args` with its leading dimensions filled in.
  MatmulKey(const MatmulArgs& args, const MatmulOptions& options);
};

struct MatmulKeyHash {
  size_t operator()(const MatmulKey& key) const;
};

// The shape's name, in plans and messages.
std::string to_string(const MatmulKey& key, bool tf32);

struct MatmulChoice {
  cublasLtMatmulAlgo_t algorithm{};
  bool fused = false;  // the epilogue adds the bias
};

// A choice as a checkpoint keeps it: the library's version, whether fused, the algorithm's bytes,
// and a checksum of these and the shape. Nothing if the text is another version's, another
// shape's, or damaged: cuBLASLt does not say what it makes of bytes that are no algorithm.
std::string plan_text(const std::string& shape, const MatmulChoice& choice, size_t version);
std::optional<MatmulChoice> read_plan(const std::string& shape, const std::string& text,
                                      size_t version);

}  // namespace lathe::cuda
