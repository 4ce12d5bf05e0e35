// A table of operations that computes nothing and notes what each call would need: workspace, FLOPs
// and bytes. The model runs a step against it to size its workspace and to predict its time.
#pragma once

#include <algorithm>

#include "kernels/ops.h"

namespace lathe {

class RecordingOps : public Ops {
 public:
  explicit RecordingOps(const Ops& real) : real_(real) {}

  DType dtype() const override { return real_.dtype(); }
  size_t workspace() const { return workspace_; }     // bytes: the largest that a call asked for
  const OpCost& total() const { return total_; }

  void embedding_forward(const EmbeddingForward& a, const Tensor&) const override { note(a); }
  void embedding_backward(const EmbeddingBackward& a, const Tensor&) const override { note(a); }
  void layernorm_forward(const LayerNormForward& a, const Tensor&) const override { note(a); }
  void layernorm_backward(const LayerNormBackward& a, const Tensor&) const override { note(a); }
  void linear_forward(const LinearForward& a, const Tensor&) const override { note(a); }
  void linear_backward(const LinearBackward& a, const Tensor&) const override { note(a); }
  void gelu_forward(const GeluForward& a, const Tensor&) const override { total_ += cost(a); }
  void gelu_backward(const GeluBackward& a, const Tensor&) const override { total_ += cost(a); }
  void attention_forward(const AttentionForward& a, const Tensor&) const override { note(a); }
  void attention_backward(const AttentionBackward& a, const Tensor&) const override { note(a); }
  void attention_cached(const AttentionCached& a, const Tensor&) const override { note(a); }
  void logits(const Logits& a, const Tensor&) const override { note(a); }
  void linear_cross_entropy(const LinearCrossEntropy& a, const Tensor&) const override { note(a); }
  void begin_step(const BeginStep& a, const Tensor&) const override { total_ += cost(a); }
  void global_norm(const GlobalNorm& a, const Tensor&) const override { note(a); }
  void adamw(const AdamW& a, const Tensor&) const override { total_ += cost(a); }
  void cast(const Cast& a, const Tensor&) const override { total_ += cost(a); }

  size_t workspace_bytes(const EmbeddingForward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const EmbeddingBackward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const LayerNormForward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const LayerNormBackward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const LinearForward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const LinearBackward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const AttentionForward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const AttentionBackward& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const AttentionCached& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const Logits& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const LinearCrossEntropy& a) const override { return real_.workspace_bytes(a); }
  size_t workspace_bytes(const GlobalNorm& a) const override { return real_.workspace_bytes(a); }

 private:
  template <typename Args> void note(const Args& args) const {
    workspace_ = std::max(workspace_, real_.workspace_bytes(args));
    total_ += cost(args);
  }

  const Ops& real_;
  mutable size_t workspace_ = 0;
  mutable OpCost total_;
};

}  // namespace lathe
