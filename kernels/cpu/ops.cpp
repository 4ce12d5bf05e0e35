#include "kernels/ops.h"

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/operations.h"

namespace lathe {

namespace {

template <typename T>
class CpuOps final : public Ops {
 public:
  explicit CpuOps(MatmulContext& matmul) : matmul_(matmul) {}

  DType dtype() const override { return dtype_of<T>; }

  void embedding_forward(const EmbeddingForward& args, const Tensor&) const override {
    lathe::embedding_forward<T>(args);
  }
  void embedding_backward(const EmbeddingBackward& args, const Tensor&) const override {
    lathe::embedding_backward<T>(args);
  }
  void layernorm_forward(const LayerNormForward& args, const Tensor&) const override {
    lathe::layernorm_forward<T>(args);
  }
  void layernorm_backward(const LayerNormBackward& args, const Tensor& workspace) const override {
    lathe::layernorm_backward<T>(args, workspace);
  }
  void linear_forward(const LinearForward& args, const Tensor& workspace) const override {
    lathe::linear_forward<T>(args, matmul_, workspace);
  }
  void linear_backward(const LinearBackward& args, const Tensor& workspace) const override {
    lathe::linear_backward<T>(args, matmul_, workspace);
  }
  void gelu_forward(const GeluForward& args, const Tensor&) const override {
    lathe::gelu_forward<T>(args);
  }
  void gelu_backward(const GeluBackward& args, const Tensor&) const override {
    lathe::gelu_backward<T>(args);
  }
  void attention_forward(const AttentionForward& args, const Tensor& workspace) const override {
    lathe::attention_forward<T>(args, workspace);
  }
  void attention_backward(const AttentionBackward& args, const Tensor& workspace) const override {
    lathe::attention_backward<T>(args, workspace);
  }
  void attention_cached(const AttentionCached& args, const Tensor& workspace) const override {
    lathe::attention_cached<T>(args, workspace);
  }
  void logits(const Logits& args, const Tensor&) const override { lathe::logits<T>(args); }
  void linear_cross_entropy(const LinearCrossEntropy& args,
                            const Tensor& workspace) const override {
    lathe::linear_cross_entropy<T>(args, matmul_, workspace);
  }
  void begin_step(const BeginStep& args, const Tensor&) const override {
    LATHE_CHECK(args.results != nullptr && args.inputs != nullptr);
    args.results->loss = args.inputs->first_loss;
    args.results->stop_votes = args.inputs->stop_vote;
  }
  void square_sums(const SquareSums& args, const Tensor&) const override {
    lathe::square_sums<Accumulator<T>>(args);
  }
  void clip_scale(const ClipScale& args, const Tensor&) const override { lathe::clip_scale(args); }
  void adamw(const AdamW& args, const Tensor&) const override { lathe::adamw<T>(args); }
  void cast(const Cast& args, const Tensor&) const override { lathe::cast(args); }

  size_t workspace_bytes(const EmbeddingForward&) const override { return 0; }
  size_t workspace_bytes(const EmbeddingBackward&) const override { return 0; }
  size_t workspace_bytes(const LayerNormForward&) const override { return 0; }
  size_t workspace_bytes(const LayerNormBackward& args) const override {
    return layernorm_backward_workspace<T>(args);
  }
  size_t workspace_bytes(const LinearForward& args) const override {
    return linear_forward_workspace<T>(args, matmul_);
  }
  size_t workspace_bytes(const LinearBackward& args) const override {
    return linear_backward_workspace<T>(args, matmul_);
  }
  size_t workspace_bytes(const GeluBackward&) const override { return 0; }
  size_t workspace_bytes(const AttentionForward& args) const override {
    return attention_forward_workspace_bytes(args);
  }
  size_t workspace_bytes(const AttentionBackward& args) const override {
    return attention_backward_workspace_bytes(args);
  }
  size_t workspace_bytes(const AttentionCached& args) const override {
    return attention_cached_workspace_bytes(args);
  }
  size_t workspace_bytes(const Logits&) const override { return 0; }
  size_t workspace_bytes(const LinearCrossEntropy& args) const override {
    return linear_cross_entropy_workspace<T>(args, matmul_);
  }

 private:
  MatmulContext& matmul_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(DType dtype, MatmulContext& matmul) {
  switch (dtype) {
    case DType::fp32:
      return std::make_unique<CpuOps<float>>(matmul);
    case DType::bf16:
      return std::make_unique<CpuOps<bf16>>(matmul);
    case DType::fp64:
      return std::make_unique<CpuOps<double>>(matmul);
    default:
      LATHE_CHECK(false, "no operations on {}", name_of(dtype));
  }
  return nullptr;
}

}  // namespace lathe
