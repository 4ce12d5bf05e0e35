#include "src/model/transformer.h"

#include <algorithm>
#include <utility>

#include "kernels/observed_ops.h"

namespace lathe {

Transformer::Transformer(const ModelConfig& config, ParameterStore& parameters,
                         const Activations& like, Device& device, Arena& arena,
                         int64_t logits_at_once)
    : config_(config),
      logits_at_once_(logits_at_once),
      parameters_(parameters),
      ops_(&device.ops(parameters.weights().wte.dtype)),
      weights_(parameters.weights()),
      gradients_(parameters.gradients()) {
  const int64_t b = like.batch_size, t = like.seq_len, c = config.n_embd;
  const auto allocate = [&](Shape shape) {
    return arena.allocate(MemoryCategory::activations, ops_->dtype(), shape);
  };
  projection_ = allocate({b, t, c});
  d_residual_ = allocate({b, t, c});
  if (config_.dropout > 0) d_branch_ = allocate({b, t, c});
  d_c_ = allocate({b, t, c});
  d_4c_ = allocate({b * t, 4 * c});
  allocate_workspace(like, arena);
}

// The workspace must fit the operation that needs the most scratch memory. To find it, the step
// runs once with a table that computes nothing.
void Transformer::allocate_workspace(const Activations& like, Arena& arena) {
  const RecordingOps recorder(*ops_);
  const Ops* real = std::exchange(ops_, &recorder);
  StepResults results;
  StepInputs inputs;
  const Tensor tokens{&inputs, DType::int32, {like.batch_size, like.seq_len}};
  const MicroBatch batch{tokens, tokens, &inputs, &like};
  forward(batch, true);
  loss(batch, 1, &results);
  loss_and_backward(batch, 1, &results, true);
  ops_ = real;
  sizing_ = false;
  workspace_ = arena.allocate(MemoryCategory::workspace, DType::uint8,
                              {static_cast<int64_t>(recorder.workspace())});
}

// What moves the inputs of layers in this pass; null: nothing does.
InputOffload* Transformer::moving_inputs(const MicroBatch* batch) const {
  return sizing_ || batch == nullptr ? nullptr : batch->kept->offload.get();
}

void Transformer::enter(Pass pass, int64_t unit, const MicroBatch* batch) {
  ops_->enter_layer(unit);
  need(pass, unit);
  InputOffload* const inputs = moving_inputs(batch);
  if (inputs == nullptr) return;
  if (pass == Pass::backward) {
    inputs->need(unit);
  } else if (unit != 0) {  // the embedding writes that of layer 0, every other unit its own
    inputs->begin_write(std::max<int64_t>(unit, 0));
  }
}

void Transformer::leave(Pass pass, int64_t unit, const MicroBatch* batch) {
  release(pass, unit);
  ops_->enter_layer(kNoLayer);
  InputOffload* const inputs = moving_inputs(batch);
  if (inputs != nullptr && pass == Pass::forward && unit >= 0) inputs->end_read(unit);
}

void Transformer::forward(const MicroBatch& batch, bool training) {
  const Activations& kept = *batch.kept;
  const MicroBatch* const trained = training ? &batch : nullptr;
  enter(Pass::forward, kEmbeddings, trained);
  ops_->run(EmbeddingForward{.x_btc = kept.embedded,
                             .tokens_bt = batch.tokens_bt,
                             .wte_vc = weights_.wte,
                             .wpe_tc = weights_.wpe,
                             .dropout = dropout(0, DropoutSite::embedding, batch, training)},
            workspace_);
  leave(Pass::forward, kEmbeddings, trained);
  for (int64_t l = 0; l < config_.n_layer; ++l) {
    enter(Pass::forward, l, trained);
    attention_block(l, input_of(l, batch, training), batch, training);
    mlp_block(l, batch, training);
    blocks().mlp_projection(weights_.layers[l], kept.layers[l], projection_);
    leave(Pass::forward, l, trained);
  }
  enter(Pass::forward, config_.n_layer, trained);
  blocks().norm(input_of(config_.n_layer, batch, training),
                {kept.ln_f, kept.ln_f_mean, kept.ln_f_rstd}, weights_.ln_f_weight,
                weights_.ln_f_bias);
  leave(Pass::forward, config_.n_layer, trained);
}

Dropout Transformer::dropout(int64_t layer, DropoutSite site, const MicroBatch& batch,
                             bool training) const {
  return {training ? config_.dropout : 0, static_cast<uint32_t>(layer), site, batch.inputs};
}

// What the first LayerNorm of a unit normalises: the MLP output of the layer below is still to be
// added.
Residual Transformer::input_of(int64_t unit, const MicroBatch& batch, bool training) const {
  if (unit == 0) return {.stream = batch.kept->embedded};
  const LayerActivations& below = batch.kept->layers[unit - 1];
  return {.stream = below.residual_mid,
          .branch = projection_,
          .sum = below.residual_out,
          .dropout = dropout(unit - 1, DropoutSite::mlp_projection, batch, training)};
}

// From the layer's input to projection_.
void Transformer::attention_block(int64_t l, const Residual& in, const MicroBatch& batch,
                                  bool training) {
  const LayerActivations& a = batch.kept->layers[l];
  const auto attend = [&] {
    ops_->run(AttentionForward{.out_btc = a.attention,
                               .logsumexp_bht = a.logsumexp,
                               .qkv_bt3c = a.qkv,
                               .n_head = config_.n_head,
                               .dropout = dropout(l, DropoutSite::attention, batch, training)},
              workspace_);
  };
  blocks().attention(weights_.layers[l], a, in, attend, projection_);
}

// From projection_ to gelu.
void Transformer::mlp_block(int64_t l, const MicroBatch& batch, bool training) {
  const LayerActivations& a = batch.kept->layers[l];
  blocks().mlp(weights_.layers[l], a,
               {.stream = batch.kept->layer_input(l),
                .branch = projection_,
                .sum = a.residual_mid,
                .dropout = dropout(l, DropoutSite::attention_projection, batch, training)},
               config_.gelu);
}

// What layer l did not keep (src/model/activations.h). The sums of the residual stream are stored,
// so here a LayerNorm has nothing to add.
void Transformer::recompute(int64_t l, const MicroBatch& batch) {
  if (l + 1 == config_.n_layer) return;  // the shared tensors still hold the last layer's
  const LayerParameters& w = weights_.layers[l];
  const LayerActivations& a = batch.kept->layers[l];
  const Residual in{.stream = batch.kept->layer_input(l)};
  switch (batch.kept->recompute) {
    case Recompute::none:
      return;
    case Recompute::block:
      attention_block(l, in, batch, true);
      return mlp_block(l, batch, true);
    case Recompute::layernorm:
      blocks().norm(in, {a.ln_1, a.ln_1_mean, a.ln_1_rstd}, w.ln_1_weight, w.ln_1_bias);
      blocks().norm({.stream = a.residual_mid}, {a.ln_2, a.ln_2_mean, a.ln_2_rstd}, w.ln_2_weight,
                    w.ln_2_bias);
      [[fallthrough]];
    case Recompute::gelu:
      ops_->run(GeluForward{.y = a.gelu, .x = a.pre_gelu, .gelu = config_.gelu}, workspace_);
  }
}

// The head's products count as the last LayerNorm's unit; its weights are the embeddings.
LinearCrossEntropy Transformer::head(const MicroBatch& batch, double scale,
                                     StepResults* results) const {
  return {.losses_n = batch.kept->losses_n,
          .x_nc = Blocks::rows(batch.kept->ln_f),
          .wte_vc = weights_.wte,
          .targets_n = batch.targets_bt.reshaped({batch.targets_bt.elements()}),
          .vocab_size = config_.vocab_size,
          .scale = scale,
          .logits_at_once = logits_at_once_,
          .results = results};
}

void Transformer::loss(const MicroBatch& batch, double scale, StepResults* results) {
  ops_->enter_layer(config_.n_layer);
  need(Pass::forward, kEmbeddings);
  ops_->run(head(batch, scale, results), workspace_);
  leave(Pass::forward, kEmbeddings, nullptr);
}

void Transformer::loss_and_backward(const MicroBatch& batch, double scale, StepResults* results,
                                    bool accumulate) {
  const int64_t last = config_.n_layer - 1, final = config_.n_layer;
  const Activations& kept = *batch.kept;
  ops_->enter_layer(final);
  need(Pass::backward, kEmbeddings);
  need_gradients(ModelParameters::kWteSlot);
  LinearCrossEntropy args = head(batch, scale, results);
  args.dx_nc = Blocks::rows(d_c_);
  args.dwte_vc = gradients_.wte;
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
  release(Pass::backward, kEmbeddings);
  need(Pass::backward, final);
  if (InputOffload* const inputs = moving_inputs(&batch)) inputs->need(final);
  need_gradients(gradients_.ln_f_slot);
  need_gradients(gradients_.layers.back().mlp_proj_slot);  // the bias
  ops_->run(LayerNormBackward{.d_residual_btc = d_residual_,
                              .dx_btc = d_branch_,
                              .dweight_c = gradients_.ln_f_weight,
                              .dbias_c = gradients_.ln_f_bias,
                              .dx_sums_c = gradients_.layers.back().mlp_proj_bias,
                              .dout_btc = d_c_,
                              .residual_out_btc = kept.layers.back().residual_out,
                              .mean_bt = kept.ln_f_mean,
                              .rstd_bt = kept.ln_f_rstd,
                              .weight_c = weights_.ln_f_weight,
                              .dropout = dropout(last, DropoutSite::mlp_projection, batch, true),
                              .fresh = true,
                              .accumulate = accumulate},
            workspace_);
  gradients_final(gradients_.ln_f_slot);
  leave(Pass::backward, final, &batch);
  for (int64_t l = last; l >= 0; --l) {
    enter(Pass::backward, l, &batch);
    recompute(l, batch);
    mlp_backward(l, batch, accumulate);
    attention_backward(l, batch, accumulate);
    leave(Pass::backward, l, &batch);
  }
  ops_->enter_layer(kEmbeddings);  // does not read its weights
  ops_->run(EmbeddingBackward{.dwte_vc = gradients_.wte,
                              .dwpe_tc = gradients_.wpe,
                              .dx_btc = d_residual_,
                              .tokens_bt = batch.tokens_bt,
                              .dropout = dropout(0, DropoutSite::embedding, batch, true),
                              .accumulate = accumulate},
            workspace_);
  ops_->enter_layer(kNoLayer);
  gradients_final(ModelParameters::kWteSlot);
}

void Transformer::backward(LinearBackward args, bool accumulate) {
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
}

void Transformer::backward(LayerNormBackward args, bool accumulate) {
  args.d_residual_btc = d_residual_;
  args.dout_btc = d_c_;
  args.accumulate = accumulate;
  ops_->run(args, workspace_);
}

// residual_out = residual_mid + mlp_proj(gelu(fc(ln_2(residual_mid)))). d_residual_ holds the
// gradient of residual_out on entry and of residual_mid on exit. The operation that computes the
// gradient of a sum also computes the gradient of the bias in that sum.
void Transformer::mlp_backward(int64_t l, const MicroBatch& batch, bool accumulate) {
  const LayerParameters &w = weights_.layers[l], &g = gradients_.layers[l];
  const LayerActivations& a = batch.kept->layers[l];
  need_gradients(g.ln_2_slot);  // fc's bias
  backward(LinearBackward{.dx_ni = d_4c_,
                          .dweight_io = g.mlp_proj_weight,
                          .dx_sums_i = g.fc_bias,
                          .dy_no = Blocks::rows(branch_gradient()),
                          .x_ni = a.gelu,
                          .weight_io = w.mlp_proj_weight,
                          .input_pre_activation_ni = a.pre_gelu,
                          .gelu = config_.gelu},
           accumulate);
  gradients_final(g.mlp_proj_slot);
  backward(LinearBackward{.dx_ni = Blocks::rows(d_c_),
                          .dweight_io = g.fc_weight,
                          .dy_no = d_4c_,
                          .x_ni = Blocks::rows(a.ln_2),
                          .weight_io = w.fc_weight},
           accumulate);
  need_gradients(g.attn_proj_slot);  // the bias
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
  gradients_final(g.ln_2_slot);
}

// residual_mid = residual_in + attn_proj(attention(qkv(ln_1(residual_in)))). d_residual_ holds the
// gradient of residual_in on exit.
void Transformer::attention_backward(int64_t l, const MicroBatch& batch, bool accumulate) {
  const LayerParameters &w = weights_.layers[l], &g = gradients_.layers[l];
  const LayerActivations& a = batch.kept->layers[l];
  Tensor d_qkv = d_4c_;
  d_qkv.shape = a.qkv.shape;
  backward(LinearBackward{.dx_ni = Blocks::rows(d_c_),
                          .dweight_io = g.attn_proj_weight,
                          .dy_no = Blocks::rows(branch_gradient()),
                          .x_ni = Blocks::rows(a.attention),
                          .weight_io = w.attn_proj_weight},
           accumulate);
  gradients_final(g.attn_proj_slot);
  need_gradients(g.ln_1_slot);
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
  backward(LinearBackward{.dx_ni = Blocks::rows(d_c_),
                          .dweight_io = g.attn_weight,
                          .dy_no = Blocks::rows(d_qkv),
                          .x_ni = Blocks::rows(a.ln_1),
                          .weight_io = w.attn_weight},
           accumulate);
  LayerNormBackward layernorm{.dweight_c = g.ln_1_weight,
                              .dbias_c = g.ln_1_bias,
                              .residual_out_btc = batch.kept->layer_input(l),
                              .mean_bt = a.ln_1_mean,
                              .rstd_bt = a.ln_1_rstd,
                              .weight_c = w.ln_1_weight};
  if (l > 0) {  // below layer 0 is the embedding, which applies its own mask
    need_gradients(gradients_.layers[l - 1].mlp_proj_slot);  // the bias
    layernorm.dx_btc = d_branch_;
    layernorm.dx_sums_c = gradients_.layers[l - 1].mlp_proj_bias;
    layernorm.dropout = dropout(l - 1, DropoutSite::mlp_projection, batch, true);
  }
  backward(layernorm, accumulate);
  gradients_final(g.ln_1_slot);
}

}  // namespace lathe
