// The operations of kernels/ops.h on the CPU, as free functions over the storage type T (float,
// bf16, double): what the table in ops.cpp calls, one .cpp file per operation. They check their
// arguments; the workspace is as the table's.
#pragma once

#include "kernels/ops.h"

namespace lathe {

class MatmulContext;

template <typename T>
void embedding_forward(const EmbeddingForward& args);
template <typename T>
void embedding_backward(const EmbeddingBackward& args);

template <typename T>
void layernorm_forward(const LayerNormForward& args);
template <typename T>
void layernorm_backward(const LayerNormBackward& args, const Tensor& workspace);
template <typename T>
size_t layernorm_backward_workspace(const LayerNormBackward& args);

template <typename T>
void gelu_forward(const GeluForward& args);
template <typename T>
void gelu_backward(const GeluBackward& args);

template <typename T>
void linear_forward(const LinearForward& args, MatmulContext& matmul, const Tensor& workspace);
template <typename T>
size_t linear_forward_workspace(const LinearForward& args, MatmulContext& matmul);
template <typename T>
void linear_backward(const LinearBackward& args, MatmulContext& matmul, const Tensor& workspace);
template <typename T>
size_t linear_backward_workspace(const LinearBackward& args, MatmulContext& matmul);

template <typename T>
void logits(const Logits& args);

template <typename T>
void linear_cross_entropy(const LinearCrossEntropy& args, MatmulContext& matmul,
                          const Tensor& workspace);
template <typename T>
size_t linear_cross_entropy_workspace(const LinearCrossEntropy& args, MatmulContext& matmul);

// A is the accumulator type of the gradients.
template <typename A>
void square_sums(const SquareSums& args);
void clip_scale(const ClipScale& args);

// T is the type of the weights.
template <typename T>
void adamw(const AdamW& args);

void cast(const Cast& args);

}  // namespace lathe
