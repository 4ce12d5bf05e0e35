// GPT-2 (Radford et al., 2019): pre-LayerNorm transformer with learned positions and tied
// embeddings; forward and backward of one micro-batch, written against the contract of operations.
#pragma once

#include <functional>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/activations.h"
#include "src/model/config.h"
#include "src/model/parameters.h"

namespace lathe {

// B sequences of T tokens on the device, and what they should continue as. Targets < 0 do not
// count.
struct MicroBatch {
  Tensor tokens_bt, targets_bt;        // int32
  const StepInputs* inputs = nullptr;  // device memory; read by dropout
};

// The backward pass has just finished elements [begin, end) of the flat gradient: from where it may
// be cut (ParameterSpec::cut) to what was finished before. ln_f's come first, the embeddings' last.
using GradientReady = std::function<void(int64_t begin, int64_t end)>;

// The forward pass is about to read the weights of a layer; of the embeddings where it is
// kEmbeddings, of ln_f where it is n_layer. In this order: embeddings, layers, ln_f.
using WeightsNeeded = std::function<void(int64_t layer)>;
inline constexpr int64_t kEmbeddings = -1;

class GPT2 {
 public:
  // Takes weights, gradients (unless inference only), activations and workspace from the arena.
  // batch_size sequences of seq_len <= config.seq_len tokens per micro-batch. What `recompute` says
  // changes memory and time, never a bit; `sharding` cuts the flat buffers for several ranks.
  // About `logits_at_once` logits exist at a time; 0: the device's choice.
  GPT2(const GPT2Config& config, DType dtype, int64_t batch_size, int64_t seq_len, Device& device,
       Arena& arena, Recompute recompute = Recompute::none, const Sharding& sharding = {},
       int64_t logits_at_once = 0);

  // Everything up to the final LayerNorm. Dropout acts only where `training`. `needed` may be
  // empty.
  void forward(const MicroBatch& batch, bool training, const WeightsNeeded& needed = {});

  // After forward: adds scale * (sum of losses) to results->loss.
  void loss(const MicroBatch& batch, double scale, StepResults* results);

  // After forward(batch, true): the loss as above, and the gradients of every parameter,
  // overwritten in the first micro-step of a step and added to in the others. `ready` may be empty.
  void loss_and_backward(const MicroBatch& batch, double scale, StepResults* results,
                         bool accumulate, const GradientReady& ready);

  // Runs on another table from here on: one that observes the device's.
  void use(const Ops& ops) { ops_ = &ops; }

  const GPT2Config& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  const GPT2Parameters& weights() const { return weights_; }
  const GPT2Parameters& gradients() const { return gradients_; }
  const Ops& ops() const { return *ops_; }
  const Tensor& workspace() const { return workspace_; }
  const Tensor& losses() const { return losses_n_; }  // per token, of the last micro-batch
  int64_t batch_size() const { return batch_size_; }
  int64_t seq_len() const { return seq_len_; }

 private:
  void allocate_activations(Arena& arena);
  void allocate_workspace(Arena& arena);
  void first_layernorm(int64_t l, const MicroBatch& batch, bool training);
  void layer_forward(int64_t l, const MicroBatch& batch, bool training);
  void make_again(int64_t l, const MicroBatch& batch);
  class Announcer;  // of finished gradients
  void layer_backward(int64_t l, const MicroBatch& batch, bool accumulate, Announcer& finished);
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
  ParameterLayout layout_;
  const Ops* ops_;
  GPT2Parameters weights_, gradients_;

  Tensor embedded_;  // the residual stream at layer 0
  std::vector<LayerActivations> layers_;
  Tensor projection_;  // output of either projection, until the next LayerNorm adds it
  Tensor ln_f_, ln_f_mean_, ln_f_rstd_;
  Tensor losses_n_;
  Tensor d_residual_, d_branch_, d_c_, d_4c_;
  Tensor workspace_;
};

}  // namespace lathe
