// Tables of operations that watch another: the model runs against them unchanged, and they learn
// what it does. RecordingOps computes nothing and adds up what a step needs; profiling derives one
// that takes the time of each call.
#pragma once

#include <algorithm>
#include <string_view>

#include "kernels/ops.h"

namespace lathe {

class ObservedOps : public Ops {
 public:
  explicit ObservedOps(const Ops& real) : real_(real) {}

  DType dtype() const override { return real_.dtype(); }

  void embedding_forward(const EmbeddingForward& args, const Tensor& workspace) const override {
    call("embedding_forward", args, workspace, &Ops::embedding_forward);
  }
  void embedding_backward(const EmbeddingBackward& args, const Tensor& workspace) const override {
    call("embedding_backward", args, workspace, &Ops::embedding_backward);
  }
  void layernorm_forward(const LayerNormForward& args, const Tensor& workspace) const override {
    call("layernorm_forward", args, workspace, &Ops::layernorm_forward);
  }
  void layernorm_backward(const LayerNormBackward& args, const Tensor& workspace) const override {
    call("layernorm_backward", args, workspace, &Ops::layernorm_backward);
  }
  void linear_forward(const LinearForward& args, const Tensor& workspace) const override {
    call("linear_forward", args, workspace, &Ops::linear_forward);
  }
  void linear_backward(const LinearBackward& args, const Tensor& workspace) const override {
    call("linear_backward", args, workspace, &Ops::linear_backward);
  }
  void gelu_forward(const GeluForward& args, const Tensor& workspace) const override {
    call("gelu_forward", args, workspace, &Ops::gelu_forward);
  }
  void gelu_backward(const GeluBackward& args, const Tensor& workspace) const override {
    call("gelu_backward", args, workspace, &Ops::gelu_backward);
  }
  void attention_forward(const AttentionForward& args, const Tensor& workspace) const override {
    call("attention_forward", args, workspace, &Ops::attention_forward);
  }
  void attention_backward(const AttentionBackward& args, const Tensor& workspace) const override {
    call("attention_backward", args, workspace, &Ops::attention_backward);
  }
  void attention_cached(const AttentionCached& args, const Tensor& workspace) const override {
    call("attention_cached", args, workspace, &Ops::attention_cached);
  }
  void logits(const Logits& args, const Tensor& workspace) const override {
    call("logits", args, workspace, &Ops::logits);
  }
  void linear_cross_entropy(const LinearCrossEntropy& args,
                            const Tensor& workspace) const override {
    call("linear_cross_entropy", args, workspace, &Ops::linear_cross_entropy);
  }
  void begin_step(const BeginStep& args, const Tensor& workspace) const override {
    call("begin_step", args, workspace, &Ops::begin_step);
  }
  void square_sums(const SquareSums& args, const Tensor& workspace) const override {
    call("square_sums", args, workspace, &Ops::square_sums);
  }
  void clip_scale(const ClipScale& args, const Tensor& workspace) const override {
    call("clip_scale", args, workspace, &Ops::clip_scale);
  }
  void adamw(const AdamW& args, const Tensor& workspace) const override {
    call("adamw", args, workspace, &Ops::adamw);
  }
  void cast(const Cast& args, const Tensor& workspace) const override {
    call("cast", args, workspace, &Ops::cast);
  }

  size_t workspace_bytes(const EmbeddingForward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const EmbeddingBackward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const LayerNormForward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const LayerNormBackward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const LinearForward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const LinearBackward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const GeluBackward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const AttentionForward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const AttentionBackward& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const AttentionCached& args) const override {
    return real_.workspace_bytes(args);
  }
  size_t workspace_bytes(const Logits& args) const override { return real_.workspace_bytes(args); }
  size_t workspace_bytes(const LinearCrossEntropy& args) const override {
    return real_.workspace_bytes(args);
  }

 protected:
  struct Call {
    std::string_view name;
    Shape sizes;
    OpCost cost;
    size_t workspace = 0;  // bytes that the operation asks for
  };
  // The call runs after before(), if that says so, and ends with after().
  virtual bool before(const Call& call) const = 0;
  virtual void after(const Call&) const {}

 private:
  template <typename Args>
  void call(std::string_view name, const Args& args, const Tensor& workspace,
            void (Ops::*operation)(const Args&, const Tensor&) const) const {
    Call seen{name, sizes(args), cost(args)};
    if constexpr (requires { real_.workspace_bytes(args); }) {
      seen.workspace = real_.workspace_bytes(args);
    }
    if (!before(seen)) return;
    (real_.*operation)(args, workspace);
    after(seen);
  }

  const Ops& real_;
};

class RecordingOps : public ObservedOps {
 public:
  using ObservedOps::ObservedOps;
  size_t workspace() const { return workspace_; }  // bytes: the most that one call asked for
  const OpCost& total() const { return total_; }

 protected:
  bool before(const Call& call) const override {
    workspace_ = std::max(workspace_, call.workspace);
    total_ += call.cost;
    return false;
  }

 private:
  mutable size_t workspace_ = 0;
  mutable OpCost total_;
};

}  // namespace lathe
