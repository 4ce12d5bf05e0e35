// Operations that are still to be written: whoever writes one removes it here.
#include "kernels/cuda/operations.h"

namespace lathe::cuda {

#define UNFINISHED LATHE_CHECK(false, "not written yet")

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
void adamw(const AdamW&, const Context&) {
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
template void adamw<float>(const AdamW&, const Context&);
template void adamw<__nv_bfloat16>(const AdamW&, const Context&);

}  // namespace lathe::cuda
