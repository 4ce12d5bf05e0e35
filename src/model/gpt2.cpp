#include "src/model/gpt2.h"

#include <utility>

#include "kernels/observed_ops.h"

namespace lathe {

GPT2::GPT2(const GPT2Config& config, ParameterStore& parameters, int64_t batch_size,
           int64_t seq_len, Device& device, Arena& arena, Recompute recompute,
           int64_t logits_at_once)
    : config_(config),
      dtype_(parameters.weights().flat.dtype),
      batch_size_(batch_size),
      seq_len_(seq_len),
      recompute_(recompute),
      logits_at_once_(logits_at_once),
      parameters_(parameters),
      ops_(&device.ops(dtype_)),
      weights_(parameters.weights()),
      gradients_(parameters.gradients()) {
  LATHE_CHECK(seq_len >= 1 && seq_len <= config.seq_len && batch_size >= 1);
  allocate_activations(arena);
  allocate_workspace(arena);
}

void GPT2::allocate_activations(Arena& arena) {
  const int64_t b = batch_size_, t = seq_len_, c = config_.n_embd;
  const auto values = [&](Shape shape) {
    return arena.allocate(MemoryCategory::activations, dtype_, shape);
  };
  const auto statistics = [&](Shape shape) {
    return arena.allocate(MemoryCategory::activations, accumulator_of(dtype_), shape);
  };
  embedded_ = values({b, t, c});
  layers_ = allocate_layers(config_, dtype_, b, t, recompute_, arena);
  projection_ = values({b, t, c});
  ln_f_ = values({b, t, c});
  ln_f_mean_ = statistics({b, t});
  ln_f_rstd_ = statistics({b, t});
  losses_n_ = statistics({b * t});
  d_residual_ = values({b, t, c});
  if (config_.dropout > 0) d_branch_ = values({b, t, c});
  d_c_ = values({b, t, c});
  d_4c_ = values({b * t, 4 * c});
}

// The workspace holds the largest operation's scratch. Which that is, the step itself tells: it
// runs once against a table that computes nothing.
void GPT2::allocate_workspace(Arena& arena) {
  const RecordingOps recorder(*ops_);
  const Ops* real = std::exchange(ops_, &recorder);
  StepResults results;
  StepInputs inputs;
  const Tensor tokens{&inputs, DType::int32, {batch_size_, seq_len_}};
  const MicroBatch batch{tokens, tokens, &inputs};
  forward(batch, true);
  loss(batch, 1, &results);
  loss_and_backward(batch, 1, &results, true);
  ops_ = real;
  workspace_ = arena.allocate(MemoryCategory::workspace, DType::uint8,
                              {static_cast<int64_t>(recorder.workspace())});
}

Dropout GPT2::dropout(int64_t layer, DropoutSite site, const MicroBatch& batch,
                      bool training) const {
  return {training ? config_.dropout : 0, static_cast<uint32_t>(layer), site, batch.inputs};
}

void GPT2::forward(const MicroBatch& batch, bool training) {
  enter(Pass::forward, kEmbeddings);
  ops_->run(EmbeddingForward{.x_btc = embedded_,
                             .tokens_bt = batch.tokens_bt,
                             .wte_vc = weights_.wte,
                             .wpe_tc = weights_.wpe,
                             .dropout = dropout(0, DropoutSite::embedding, batch, training)},
            workspace_);
  leave(Pass::forward, kEmbeddings);
  for (int64_t l = 0; l < config_.n_layer; ++l) {
    const GPT2Layer& w = weights_.layers[l];
    enter(Pass::forward, l);
    first_layernorm(l, batch, training);
    layer_forward(l, batch, training);
    ops_->run(LinearForward{.y_no = flat(projection_),
                            .x_ni = layers_[l].gelu,
                            .weight_io = w.mlp_proj_weight,
                            .bias_o = w.mlp_proj_bias},
              workspace_);
    leave(Pass::forward, l);
  }
  enter(Pass::forward, config_.n_layer);
  ops_->run(LayerNormForward{.out_btc = ln_f_,
                             .residual_out_btc = layers_.back().residual_out,
                             .mean_bt = ln_f_mean_,
                             .rstd_bt = ln_f_rstd_,
                             .x_btc = projection_,
                             .residual_in_btc = layers_.back().residual_mid,
                             .weight_c = weights_.ln_f_weight,
                             .bias_c = weights_.ln_f_bias,
                             .dropout = dropout(config_.n_layer - 1, DropoutSite::mlp_projection,
                                                batch, training)},
            workspace_);
  leave(Pass::forward, config_.n_layer);
}

void GPT2::enter(Pass pass, int64_t unit) {
  ops_->enter_layer(unit);
  parameters_.need(pass, unit);
}

void GPT2::leave(Pass pass, int64_t unit) {
  parameters_.release(pass, unit);
  ops_->enter_layer(kNoLayer);
}

// Each residual addition is fused into the LayerNorm that follows it: this one adds the MLP of the
// layer below.
void GPT2::first_layernorm(int64_t l, const MicroBatch& batch, bool training) {
  const LayerActivations& a = layers_[l];
  LayerNormForward args{.out_btc = a.ln_1,
                        .mean_bt = a.ln_1_mean,
                        .rstd_bt = a.ln_1_rstd,
                        .residual_in_btc = embedded_,
                        .weight_c = weights_.layers[l].ln_1_weight,
                        .bias_c = weights_.layers[l].ln_1_bias};
  if (l > 0) {
    args.residual_out_btc = layers_[l - 1].residual_out;
    args.x_btc = projection_;
    args.residual_in_btc = layers_[l - 1].residual_mid;
    args.dropout = dropout(l - 1, DropoutSite::mlp_projection, batch, training);
  }
  ops_->run(args, workspace_);
}

// From ln_1 to gelu.
void GPT2::layer_forward(int64_t l, const MicroBatch& batch, bool training) {
  const GPT2Layer& w = weights_.layers[l];
  const LayerActivations& a = layers_[l];
  const auto linear = [&](const LinearForward& args) { ops_->run(args, workspace_); };
  linear({.y_no = flat(a.qkv),
          .x_ni = flat(a.ln_1),
          .weight_io = w.attn_weight,
          .bias_o = w.attn_bias});
  ops_->run(AttentionForward{.out_btc = a.attention,
                             .logsumexp_bht = a.logsumexp,
                             .qkv_bt3c = a.qkv,
                             .n_head = config_.n_head,
                             .dropout = dropout(l, DropoutSite::attention, batch, training)},
            workspace_);
  linear({.y_no = flat(projection_),
          .x_ni = flat(a.attention),
          .weight_io = w.attn_proj_weight,
          .bias_o = w.attn_proj_bias});
  ops_->run(
      LayerNormForward{.out_btc = a.ln_2,
                       .residual_out_btc = a.residual_mid,
                       .mean_bt = a.ln_2_mean,
                       .rstd_bt = a.ln_2_rstd,
                       .x_btc = projection_,
                       .residual_in_btc = layer_input(l),
                       .weight_c = w.ln_2_weight,
                       .bias_c = w.ln_2_bias,
                       .dropout = dropout(l, DropoutSite::attention_projection, batch, training)},
      workspace_);
  linear({.y_no = a.gelu,
          .pre_activation_no = a.pre_gelu,
          .x_ni = flat(a.ln_2),
          .weight_io = w.fc_weight,
          .bias_o = w.fc_bias,
          .gelu = config_.gelu});
}

// What layer l did not keep (src/model/activations.h). The sums of the residual stream are stored,
// so a LayerNorm has nothing to add this time.
void GPT2::make_again(int64_t l, const MicroBatch& batch) {
  if (l + 1 == config_.n_layer) return;  // the last layer's are still there
  const GPT2Layer& w = weights_.layers[l];
  const LayerActivations& a = layers_[l];
  if (recompute_ >= Recompute::layernorm) {
    ops_->run(LayerNormForward{.out_btc = a.ln_1,
                               .mean_bt = a.ln_1_mean,
                               .rstd_bt = a.ln_1_rstd,
                               .residual_in_btc = layer_input(l),
                               .weight_c = w.ln_1_weight,
                               .bias_c = w.ln_1_bias},
              workspace_);
  }
  if (recompute_ == Recompute::layernorm) {
    ops_->run(LayerNormForward{.out_btc = a.ln_2,
                               .mean_bt = a.ln_2_mean,
                               .rstd_bt = a.ln_2_rstd,
                               .residual_in_btc = a.residual_mid,
                               .weight_c = w.ln_2_weight,
                               .bias_c = w.ln_2_bias},
              workspace_);
  }
  if (recompute_ == Recompute::gelu || recompute_ == Recompute::layernorm) {
    ops_->run(GeluForward{.y = a.gelu, .x = a.pre_gelu, .gelu = config_.gelu}, workspace_);
  }
  if (recompute_ == Recompute::block) layer_forward(l, batch, true);
}

// The head's products belong to the layer of the last LayerNorm; its weights are the embeddings.
LinearCrossEntropy GPT2::head(const MicroBatch& batch, double scale, StepResults* results) const {
  const int64_t n = batch_size_ * seq_len_;
  return {.losses_n = losses_n_,
          .x_nc = ln_f_.reshaped({n, config_.n_embd}),
          .wte_vc = weights_.wte,
          .targets_n = batch.targets_bt.reshaped({n}),
          .vocab_size = config_.vocab_size,
          .scale = scale,
          .logits_at_once = logits_at_once_,
          .results = results};
}

void GPT2::loss(const MicroBatch& batch, double scale, StepResults* results) {
  ops_->enter_layer(config_.n_layer);
  parameters_.need(Pass::forward, kEmbeddings);
  ops_->run(head(batch, scale, results), workspace_);
  leave(Pass::forward, kEmbeddings);
}

void GPT2::loss_and_backward(const MicroBatch& batch, double scale, StepResults* results,
                             bool accumulate) {
  const int64_t last = config_.n_layer - 1, final = config_.n_layer;
  ops_->enter_layer(final);
  parameters_.need(Pass::backward, kEmbeddings);
  parameters_.need_gradients(kEmbeddings);
  LinearCrossEntropy args = head(batch, scale, results);
  args.dx_nc = d_c_.reshaped({batch_size_ * seq_len_, config_.n_embd});
  args.dwte_vc = gradients_.wte;
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
  parameters_.release(Pass::backward, kEmbeddings);
  parameters_.need(Pass::backward, final);
  parameters_.need_gradients(final);
  parameters_.need_gradients(last);  // the bias of its last projection
  ops_->run(LayerNormBackward{.d_residual_btc = d_residual_,
                              .dx_btc = d_branch_,
                              .dweight_c = gradients_.ln_f_weight,
                              .dbias_c = gradients_.ln_f_bias,
                              .dx_sums_c = gradients_.layers.back().mlp_proj_bias,
                              .dout_btc = d_c_,
                              .residual_out_btc = layers_.back().residual_out,
                              .mean_bt = ln_f_mean_,
                              .rstd_bt = ln_f_rstd_,
                              .weight_c = weights_.ln_f_weight,
                              .dropout = dropout(last, DropoutSite::mlp_projection, batch, true),
                              .fresh = true,
                              .accumulate = accumulate},
            workspace_);
  parameters_.gradients_final(gradients_.ln_f_slot);
  leave(Pass::backward, final);
  for (int64_t l = last; l >= 0; --l) {
    enter(Pass::backward, l);
    make_again(l, batch);
    mlp_backward(l, batch, accumulate);
    attention_backward(l, batch, accumulate);
    leave(Pass::backward, l);
  }
  ops_->enter_layer(kEmbeddings);  // whose weights it does not read
  ops_->run(EmbeddingBackward{.dwte_vc = gradients_.wte,
                              .dwpe_tc = gradients_.wpe,
                              .dx_btc = d_residual_,
                              .tokens_bt = batch.tokens_bt,
                              .dropout = dropout(0, DropoutSite::embedding, batch, true),
                              .accumulate = accumulate},
            workspace_);
  ops_->enter_layer(kNoLayer);
  parameters_.gradients_final(GPT2Parameters::kWteSlot);
}

void GPT2::backward(LinearBackward args, bool accumulate) {
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
}

void GPT2::backward(LayerNormBackward args, bool accumulate) {
  args.d_residual_btc = d_residual_;
  args.dout_btc = d_c_;
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
}

// residual_out = residual_mid + mlp_proj(gelu(fc(ln_2(residual_mid)))). On entry d_residual_ is the
// gradient of residual_out, on exit that of residual_mid. The gradient of a bias is made by the
// operation that makes the gradient of what the bias was added to.
void GPT2::mlp_backward(int64_t l, const MicroBatch& batch, bool accumulate) {
  const GPT2Layer &w = weights_.layers[l], &g = gradients_.layers[l];
  const LayerActivations& a = layers_[l];
  backward(LinearBackward{.dx_ni = d_4c_,
                          .dweight_io = g.mlp_proj_weight,
                          .dx_sums_i = g.fc_bias,
                          .dy_no = flat(branch_gradient()),
                          .x_ni = a.gelu,
                          .weight_io = w.mlp_proj_weight,
                          .input_pre_activation_ni = a.pre_gelu,
                          .gelu = config_.gelu},
           accumulate);
  parameters_.gradients_final(g.mlp_proj_slot);
  backward(LinearBackward{.dx_ni = flat(d_c_),
                          .dweight_io = g.fc_weight,
                          .dy_no = d_4c_,
                          .x_ni = flat(a.ln_2),
                          .weight_io = w.fc_weight},
           accumulate);
  backward(LayerNormBackward{.dx_btc = d_branch_,
                             .dweight_c = g.ln_2_weight,
                             .dbias_c = g.ln_2_bias,
                             .dx_sums_c = g.attn_proj_bias,
                             .residual_out_btc = a.residual_mid,
                             .mean_bt = a.ln_2_mean,
                             .rstd_bt = a.ln_2_rstd,
                             .weight_c = w.ln_2_weight,
                             .dropout = dropout(l, DropoutSite::attention_projection, batch, true)},
           accumulate);
  parameters_.gradients_final(g.ln_2_slot);
}

// residual_mid = residual_in + attn_proj(attention(qkv(ln_1(residual_in)))). d_residual_ becomes
// the gradient of residual_in.
void GPT2::attention_backward(int64_t l, const MicroBatch& batch, bool accumulate) {
  const GPT2Layer &w = weights_.layers[l], &g = gradients_.layers[l];
  const LayerActivations& a = layers_[l];
  Tensor d_qkv = d_4c_;
  d_qkv.shape = {batch_size_, seq_len_, 3 * config_.n_embd};
  backward(LinearBackward{.dx_ni = flat(d_c_),
                          .dweight_io = g.attn_proj_weight,
                          .dy_no = flat(branch_gradient()),
                          .x_ni = flat(a.attention),
                          .weight_io = w.attn_proj_weight},
           accumulate);
  parameters_.gradients_final(g.attn_proj_slot);
  ops_->run(AttentionBackward{.dqkv_bt3c = d_qkv,
                              .dqkv_sums_3c = g.attn_bias,
                              .dout_btc = d_c_,
                              .out_btc = a.attention,
                              .logsumexp_bht = a.logsumexp,
                              .qkv_bt3c = a.qkv,
                              .n_head = config_.n_head,
                              .dropout = dropout(l, DropoutSite::attention, batch, true),
                              .accumulate = accumulate},
            workspace_);
  backward(LinearBackward{.dx_ni = flat(d_c_),
                          .dweight_io = g.attn_weight,
                          .dy_no = flat(d_qkv),
                          .x_ni = flat(a.ln_1),
                          .weight_io = w.attn_weight},
           accumulate);
  LayerNormBackward layernorm{.dweight_c = g.ln_1_weight,
                              .dbias_c = g.ln_1_bias,
                              .residual_out_btc = layer_input(l),
                              .mean_bt = a.ln_1_mean,
                              .rstd_bt = a.ln_1_rstd,
                              .weight_c = w.ln_1_weight};
  if (l > 0) {  // below the first layer lies the embedding, which applies its own mask
    parameters_.need_gradients(l - 1);  // the bias of its last projection
    layernorm.dx_btc = d_branch_;
    layernorm.dx_sums_c = gradients_.layers[l - 1].mlp_proj_bias;
    layernorm.dropout = dropout(l - 1, DropoutSite::mlp_projection, batch, true);
  }
  backward(layernorm, accumulate);
  parameters_.gradients_final(g.ln_1_slot);
}

}  // namespace lathe
