// GPT-2 (Radford et al., 2019): pre-LayerNorm transformer with learned positions and tied
// embeddings; forward and backward of one micro-batch, written against the contract of operations.
#pragma once

#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/activations.h"
#include "src/model/config.h"
#include "src/model/parameter_store.h"

namespace lathe {

// B sequences of T tokens on the device, and what they should continue as. Targets < 0 do not
// count.
struct MicroBatch {
  Tensor tokens_bt, targets_bt;        // int32
  const StepInputs* inputs = nullptr;  // device memory; read by dropout
};

class GPT2 {
 public:
  // Takes activations and workspace from the arena. batch_size sequences of seq_len <=
  // config.seq_len tokens per micro-batch. What `recompute` says changes memory and time, never a
  // bit. About `logits_at_once` logits exist at a time; 0: the device's choice.
  GPT2(const GPT2Config& config, ParameterStore& parameters, int64_t batch_size, int64_t seq_len,
       Device& device, Arena& arena, Recompute recompute = Recompute::none,
       int64_t logits_at_once = 0);

  // Everything up to the final LayerNorm. Dropout acts only if `training`.
  void forward(const MicroBatch& batch, bool training);

  // After forward: adds scale * (sum of losses) to results->loss.
  void loss(const MicroBatch& batch, double scale, StepResults* results);

  // After forward(batch, true): the loss as above, and the gradients of every parameter,
  // overwritten in the first micro-step of a step and added to in the others.
  void loss_and_backward(const MicroBatch& batch, double scale, StepResults* results,
                         bool accumulate);

  // Runs on another table from here on: one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

  const GPT2Config& config() const { return config_; }
  const Ops& ops() const { return *ops_; }
  const Tensor& workspace() const { return workspace_; }

 private:
  void enter(Pass pass, int64_t unit);
  void leave(Pass pass, int64_t unit);
  LinearCrossEntropy head(const MicroBatch& batch, double scale, StepResults* results) const;
  void allocate_activations(Arena& arena);
  void allocate_workspace(Arena& arena);
  void first_layernorm(int64_t l, const MicroBatch& batch, bool training);
  void layer_forward(int64_t l, const MicroBatch& batch, bool training);
  void make_again(int64_t l, const MicroBatch& batch);
  void backward(LinearBackward args, bool accumulate);
  void backward(LayerNormBackward args, bool accumulate);  // of d_c_, into d_residual_
  void mlp_backward(int64_t l, const MicroBatch& batch, bool accumulate);
  void attention_backward(int64_t l, const MicroBatch& batch, bool accumulate);
  Dropout dropout(int64_t layer, DropoutSite site, const MicroBatch& batch, bool training) const;
  // The residual stream where layer l begins.
  const Tensor& layer_input(int64_t l) const {
    return l > 0 ? layers_[l - 1].residual_out : embedded_;
  }
  // N rows, whatever the tensor's shape.
  Tensor flat(const Tensor& x) const {
    const int64_t n = batch_size_ * seq_len_;
    return x.reshaped({n, x.elements() / n});
  }
  // The branch's share of the residual gradient: a copy with the dropout mask, or the same tensor.
  const Tensor& branch_gradient() const { return config_.dropout > 0 ? d_branch_ : d_residual_; }

  GPT2Config config_;
  DType dtype_;
  int64_t batch_size_, seq_len_;
  Recompute recompute_;
  int64_t logits_at_once_;
  ParameterStore& parameters_;
  const Ops* ops_;
  const GPT2Parameters &weights_, &gradients_;  // the store's

  Tensor embedded_;  // the residual stream at layer 0
  std::vector<LayerActivations> layers_;
  Tensor projection_;  // output of either projection, until the next LayerNorm adds it
  Tensor ln_f_, ln_f_mean_, ln_f_rstd_;
  Tensor losses_n_;
  Tensor d_residual_, d_branch_, d_c_, d_4c_;
  Tensor workspace_;
};

}  // namespace lathe
