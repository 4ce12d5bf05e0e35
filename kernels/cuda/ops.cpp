#include "kernels/ops.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/operations.h"

namespace lathe::cuda {

namespace {

template <typename T>
class CudaOps final : public Ops {
 public:
  explicit CudaOps(const Context& context) : context_(context) {}

  DType dtype() const override { return kernel_dtype<T>; }

  void embedding_forward(const EmbeddingForward& args, const Tensor&) const override {
    cuda::embedding_forward<T>(args, context_);
  }
  void embedding_backward(const EmbeddingBackward& args, const Tensor& workspace) const override {
    cuda::embedding_backward<T>(args, context_, workspace);
  }
  void layernorm_forward(const LayerNormForward& args, const Tensor&) const override {
    cuda::layernorm_forward<T>(args, context_);
  }
  void layernorm_backward(const LayerNormBackward& args, const Tensor& workspace) const override {
    cuda::layernorm_backward<T>(args, context_, workspace);
  }
  void linear_forward(const LinearForward& args, const Tensor& workspace) const override {
    cuda::linear_forward<T>(args, context_, workspace);
  }
  void linear_backward(const LinearBackward& args, const Tensor& workspace) const override {
    cuda::linear_backward<T>(args, context_, workspace);
  }
  void gelu_forward(const GeluForward& args, const Tensor&) const override {
    cuda::gelu_forward<T>(args, context_);
  }
  void gelu_backward(const GeluBackward& args, const Tensor& workspace) const override {
    cuda::gelu_backward<T>(args, context_, workspace);
  }
  void attention_forward(const AttentionForward& args, const Tensor& workspace) const override {
    cuda::attention_forward<T>(args, context_, workspace);
  }
  void attention_backward(const AttentionBackward& args, const Tensor& workspace) const override {
    cuda::attention_backward<T>(args, context_, workspace);
  }
  void attention_cached(const AttentionCached& args, const Tensor& workspace) const override {
    cuda::attention_cached<T>(args, context_, workspace);
  }
  void logits(const Logits& args, const Tensor&) const override { cuda::logits<T>(args, context_); }
  void linear_cross_entropy(const LinearCrossEntropy& args,
                            const Tensor& workspace) const override {
    cuda::linear_cross_entropy<T>(args, context_, workspace);
  }
  void begin_step(const BeginStep& args, const Tensor&) const override {
    cuda::begin_step(args, context_);
  }
  void square_sums(const SquareSums& args, const Tensor&) const override {
    cuda::square_sums(args, context_);
  }
  void clip_scale(const ClipScale& args, const Tensor&) const override {
    cuda::clip_scale(args, context_);
  }
  void adamw(const AdamW& args, const Tensor&) const override { cuda::adamw<T>(args, context_); }
  void cast(const Cast& args, const Tensor&) const override { cuda::cast(args, context_); }

  size_t workspace_bytes(const EmbeddingForward&) const override { return 0; }
  size_t workspace_bytes(const EmbeddingBackward& args) const override {
    return embedding_backward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const LayerNormForward&) const override { return 0; }
  size_t workspace_bytes(const LayerNormBackward& args) const override {
    return layernorm_backward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const LinearForward& args) const override {
    return linear_forward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const LinearBackward& args) const override {
    return linear_backward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const GeluBackward& args) const override {
    return gelu_backward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const AttentionForward& args) const override {
    return attention_forward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const AttentionBackward& args) const override {
    return attention_backward_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const AttentionCached& args) const override {
    return attention_cached_workspace<T>(args, context_);
  }
  size_t workspace_bytes(const Logits&) const override { return 0; }
  size_t workspace_bytes(const LinearCrossEntropy& args) const override {
    return linear_cross_entropy_workspace<T>(args, context_);
  }

 private:
  const Context& context_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(DType dtype, const Context& context) {
  switch (dtype) {
    case DType::fp32:
      return std::make_unique<CudaOps<float>>(context);
    case DType::bf16:
      return std::make_unique<CudaOps<__nv_bfloat16>>(context);
    default:
      LATHE_CHECK(false, "no operations on {} on a GPU", name_of(dtype));
  }
  return nullptr;
}

}  // namespace lathe::cuda
