// How cuBLASLt computes products of one shape: the key of a plan, the choice, and both as text.
#pragma once

#include <cublasLt.h>

#include <optional>
#include <string>

#include "kernels/cuda/matmul.h"

namespace lathe::cuda {

// What the library requires of its operands, and what an epilogue's vector must have.
inline constexpr size_t kLeastAlignment = 16;

// Bytes: the largest power of two that divides the address, at most `most`.
size_t alignment_of(const void* pointer, size_t most);

// Everything that the choice of an algorithm may depend on: the key of the cache of plans.
struct MatmulKey {
  int64_t m, n, k, ldc, lda, ldb;
  bool transpose_a, transpose_b, accumulate;
  DType input, output;
  bool bias;  // that an epilogue can add
  size_t align_c, align_a, align_b;

  bool operator==(const MatmulKey&) const = default;

  // Fills in the leading dimensions that `args` leaves at 0.
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

// A choice as stored in a checkpoint: the library's version, whether fused, the algorithm's bytes,
// and a checksum of these and the shape. Empty if the text belongs to another version or shape, or
// is damaged: cuBLASLt does not define what it does with bytes that are no algorithm.
std::string plan_text(const std::string& shape, const MatmulChoice& choice, size_t version);
std::optional<MatmulChoice> read_plan(const std::string& shape, const std::string& text,
                                      size_t version);

}  // namespace lathe::cuda
