// The model of Radford et al., 2019: a pre-LayerNorm transformer with learned positions and tied
// embeddings. Forward and backward of one micro-batch, written with the operations of
// kernels/ops.h.
#pragma once

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/activations.h"
#include "src/model/blocks.h"
#include "src/model/config.h"
#include "src/model/parameter_store.h"

namespace lathe {

// B sequences of T tokens on the device, and the token expected after each. Targets < 0 do not
// count.
struct MicroBatch {
  Tensor tokens_bt, targets_bt;        // int32
  const StepInputs* inputs = nullptr;  // device memory, for dropout
  const Activations* kept = nullptr;   // what its forward pass keeps for its backward pass
};

class Transformer {
 public:
  // Allocates the gradients of activations and the workspace from the arena, for micro-batches with
  // activations of the same shapes as `like`. About `logits_at_once` logits exist at a time; 0: the
  // device chooses.
  Transformer(const ModelConfig& config, ParameterStore& parameters, const Activations& like,
              Device& device, Arena& arena, int64_t logits_at_once = 0);

  // Everything up to the final LayerNorm. Dropout only if `training`.
  void forward(const MicroBatch& batch, bool training);

  // After forward: adds scale * (sum of losses) to results->loss.
  void loss(const MicroBatch& batch, double scale, StepResults* results);

  // After forward(batch, true): adds the loss as above and computes the gradients of all
  // parameters: adds to them if `accumulate`, else overwrites them.
  void loss_and_backward(const MicroBatch& batch, double scale, StepResults* results,
                         bool accumulate);

  // Uses another table of operations from here on, such as one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

  const ModelConfig& config() const { return config_; }
  const Ops& ops() const { return *ops_; }

 private:
  void allocate_workspace(const Activations& like, Arena& arena);
  InputOffload* moving_inputs(const MicroBatch* batch) const;
  // Around what a pass does with a unit. `batch`: of training; null in an evaluation.
  void enter(Pass pass, int64_t unit, const MicroBatch* batch);
  void leave(Pass pass, int64_t unit, const MicroBatch* batch);
  void need(Pass pass, int64_t unit) {
    if (!sizing_) parameters_.need(pass, unit);
  }
  void release(Pass pass, int64_t unit) {
    if (!sizing_) parameters_.release(pass, unit);
  }
  void need_gradients(size_t slot) {
    if (!sizing_) parameters_.need_gradients(slot);
  }
  void gradients_final(size_t slot) {
    if (!sizing_) parameters_.gradients_final(slot);
  }
  Blocks blocks() const { return {*ops_, workspace_}; }

  Dropout dropout(int64_t layer, DropoutSite site, const MicroBatch& batch, bool training) const;
  Residual input_of(int64_t unit, const MicroBatch& batch, bool training) const;
  void attention_block(int64_t l, const Residual& in, const MicroBatch& batch, bool training);
  void mlp_block(int64_t l, const MicroBatch& batch, bool training);
  LinearCrossEntropy head(const MicroBatch& batch, double scale, StepResults* results) const;

  void recompute(int64_t l, const MicroBatch& batch);
  void backward(LinearBackward args, bool accumulate);
  void backward(LayerNormBackward args, bool accumulate);  // of d_c_, into d_residual_
  void mlp_backward(int64_t l, const MicroBatch& batch, bool accumulate);
  void attention_backward(int64_t l, const MicroBatch& batch, bool accumulate);
  // The branch's share of the residual gradient: a copy with the dropout mask, or the same tensor.
  const Tensor& branch_gradient() const { return config_.dropout > 0 ? d_branch_ : d_residual_; }

  ModelConfig config_;
  int64_t logits_at_once_;
  ParameterStore& parameters_;
  bool sizing_ = true;  // allocate_workspace() runs a step without weights or data
  const Ops* ops_;
  const ModelParameters &weights_, &gradients_;  // the store's

  Tensor projection_;  // output of either projection, until the next LayerNorm adds it
  Tensor d_residual_, d_branch_, d_c_, d_4c_;
  Tensor workspace_;
};

}  // namespace lathe
