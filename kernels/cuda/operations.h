// The operations of kernels/ops.h on the GPU, as free functions over the storage type T (float,
// __nv_bfloat16): what the table in ops.cu calls, one .cu file per operation. They check their
// arguments, enqueue on the context's stream and return; the workspace is as the table's.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace lathe::cuda {

template <typename T>
void embedding_forward(const EmbeddingForward& args, const Context& context);
template <typename T>
void embedding_backward(const EmbeddingBackward& args, const Context& context,
                        const Tensor& workspace);
template <typename T>
size_t embedding_backward_workspace(const EmbeddingBackward& args, const Context& context);

template <typename T>
void layernorm_forward(const LayerNormForward& args, const Context& context);
template <typename T>
void layernorm_backward(const LayerNormBackward& args, const Context& context,
                        const Tensor& workspace);
template <typename T>
size_t layernorm_backward_workspace(const LayerNormBackward& args, const Context& context);

template <typename T>
void gelu_forward(const GeluForward& args, const Context& context);
template <typename T>
void gelu_backward(const GeluBackward& args, const Context& context, const Tensor& workspace);
template <typename T>
size_t gelu_backward_workspace(const GeluBackward& args, const Context& context);

template <typename T>
void linear_forward(const LinearForward& args, const Context& context, const Tensor& workspace);
template <typename T>
size_t linear_forward_workspace(const LinearForward& args, const Context& context);
template <typename T>
void linear_backward(const LinearBackward& args, const Context& context, const Tensor& workspace);
template <typename T>
size_t linear_backward_workspace(const LinearBackward& args, const Context& context);

template <typename T>
void attention_forward(const AttentionForward& args, const Context& context,
                       const Tensor& workspace);
template <typename T>
size_t attention_forward_workspace(const AttentionForward& args, const Context& context);
template <typename T>
void attention_backward(const AttentionBackward& args, const Context& context,
                        const Tensor& workspace);
template <typename T>
size_t attention_backward_workspace(const AttentionBackward& args, const Context& context);
template <typename T>
void attention_cached(const AttentionCached& args, const Context& context, const Tensor& workspace);
template <typename T>
size_t attention_cached_workspace(const AttentionCached& args, const Context& context);

template <typename T>
void logits(const Logits& args, const Context& context);

template <typename T>
void linear_cross_entropy(const LinearCrossEntropy& args, const Context& context,
                          const Tensor& workspace);
template <typename T>
size_t linear_cross_entropy_workspace(const LinearCrossEntropy& args, const Context& context);

void begin_step(const BeginStep& args, const Context& context);
void square_sums(const SquareSums& args, const Context& context);
void clip_scale(const ClipScale& args, const Context& context);

// T is the type of the weights.
template <typename T>
void adamw(const AdamW& args, const Context& context);

void cast(const Cast& args, const Context& context);

}  // namespace lathe::cuda
