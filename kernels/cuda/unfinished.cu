// Operations that are still to be written: whoever writes one removes it here.
#include "kernels/cuda/operations.h"

namespace lathe::cuda {

#define UNFINISHED LATHE_CHECK(false, "not written yet")

// pointwise
template <typename T>
void embedding_forward(const EmbeddingForward&, const Context&) {
  UNFINISHED;
}
template <typename T>
void embedding_backward(const EmbeddingBackward&, const Context&, const Tensor&) {
  UNFINISHED;
}
template <typename T>
size_t embedding_backward_workspace(const EmbeddingBackward&, const Context&) {
  return 0;
}
template <typename T>
void layernorm_forward(const LayerNormForward&, const Context&) {
  UNFINISHED;
}
template <typename T>
void layernorm_backward(const LayerNormBackward&, const Context&, const Tensor&) {
  UNFINISHED;
}
template <typename T>
size_t layernorm_backward_workspace(const LayerNormBackward&, const Context&) {
  return 0;
}
template <typename T>
void gelu_forward(const GeluForward&, const Context&) {
  UNFINISHED;
}
template <typename T>
void gelu_backward(const GeluBackward&, const Context&) {
  UNFINISHED;
}
template <typename T>
void logits(const Logits&, const Context&) {
  UNFINISHED;
}
void begin_step(const BeginStep&, const Context&) {
  UNFINISHED;
}
void global_norm(const GlobalNorm&, const Context&, const Tensor&) {
  UNFINISHED;
}
size_t global_norm_workspace(const GlobalNorm&) {
  return 0;
}
template <typename T>
void adamw(const AdamW&, const Context&) {
  UNFINISHED;
}
void cast(const Cast&, const Context&) {
  UNFINISHED;
}
template void embedding_forward<float>(const EmbeddingForward&, const Context&);
template void embedding_forward<__nv_bfloat16>(const EmbeddingForward&, const Context&);
template void embedding_backward<float>(const EmbeddingBackward&, const Context&, const Tensor&);
template void embedding_backward<__nv_bfloat16>(const EmbeddingBackward&, const Context&,
                                                const Tensor&);
template size_t embedding_backward_workspace<float>(const EmbeddingBackward&, const Context&);
template size_t embedding_backward_workspace<__nv_bfloat16>(const EmbeddingBackward&,
                                                            const Context&);
template void layernorm_forward<float>(const LayerNormForward&, const Context&);
template void layernorm_forward<__nv_bfloat16>(const LayerNormForward&, const Context&);
template void layernorm_backward<float>(const LayerNormBackward&, const Context&, const Tensor&);
template void layernorm_backward<__nv_bfloat16>(const LayerNormBackward&, const Context&,
                                                const Tensor&);
template size_t layernorm_backward_workspace<float>(const LayerNormBackward&, const Context&);
template size_t layernorm_backward_workspace<__nv_bfloat16>(const LayerNormBackward&,
                                                            const Context&);
template void gelu_forward<float>(const GeluForward&, const Context&);
template void gelu_forward<__nv_bfloat16>(const GeluForward&, const Context&);
template void gelu_backward<float>(const GeluBackward&, const Context&);
template void gelu_backward<__nv_bfloat16>(const GeluBackward&, const Context&);
template void logits<float>(const Logits&, const Context&);
template void logits<__nv_bfloat16>(const Logits&, const Context&);
template void adamw<float>(const AdamW&, const Context&);
template void adamw<__nv_bfloat16>(const AdamW&, const Context&);

}  // namespace lathe::cuda
