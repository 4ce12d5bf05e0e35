// The parts of the forward pass, from which training, recomputation and decoding are composed.
// LayerNormForward adds to the residual stream before it normalises it, so a part takes the stream
// together with the branch that is still to be added.
#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "src/model/activations.h"
#include "src/model/parameters.h"

namespace lathe {

// The residual stream at the input of a LayerNorm: stream + dropout(branch), stored in `sum`.
// Without a branch it is `stream`, and nothing is stored.
struct Residual {
  Tensor stream, branch, sum;
  Dropout dropout;
};

// What a LayerNorm writes.
struct Normed {
  Tensor out, mean, rstd;
};

// The parts, run on one table of operations with one workspace. `w` is a layer's weights, `a` its
// activations; all shapes come from the tensors.
struct Blocks {
  const Ops& ops;
  const Tensor& workspace;

  void norm(const Residual& in, const Normed& to, const Tensor& weight, const Tensor& bias) const {
    ops.run(LayerNormForward{.out_btc = to.out,
                             .residual_out_btc = in.sum,
                             .mean_bt = to.mean,
                             .rstd_bt = to.rstd,
                             .x_btc = in.branch,
                             .residual_in_btc = in.stream,
                             .weight_c = weight,
                             .bias_c = bias,
                             .dropout = in.dropout},
            workspace);
  }
  // branch = projection(attention(qkv(ln_1(in)))), where attend() turns a.qkv into a.attention.
  template <typename Attend>
  void attention(const LayerParameters& w, const LayerActivations& a, const Residual& in,
                 const Attend& attend, const Tensor& branch) const {
    norm(in, {a.ln_1, a.ln_1_mean, a.ln_1_rstd}, w.ln_1_weight, w.ln_1_bias);
    linear(a.qkv, a.ln_1, w.attn_weight, w.attn_bias);
    attend();
    linear(branch, a.attention, w.attn_proj_weight, w.attn_proj_bias);
  }
  // a.gelu = gelu(fc(ln_2(in)))
  void mlp(const LayerParameters& w, const LayerActivations& a, const Residual& in,
           Gelu gelu) const {
    norm(in, {a.ln_2, a.ln_2_mean, a.ln_2_rstd}, w.ln_2_weight, w.ln_2_bias);
    ops.run(LinearForward{.y_no = a.gelu,
                          .pre_activation_no = a.pre_gelu,
                          .x_ni = rows(a.ln_2),
                          .weight_io = w.fc_weight,
                          .bias_o = w.fc_bias,
                          .gelu = gelu},
            workspace);
  }
  // branch = projection(a.gelu)
  void mlp_projection(const LayerParameters& w, const LayerActivations& a,
                      const Tensor& branch) const {
    linear(branch, a.gelu, w.mlp_proj_weight, w.mlp_proj_bias);
  }

  void linear(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias) const {
    ops.run(LinearForward{.y_no = rows(y), .x_ni = rows(x), .weight_io = weight, .bias_o = bias},
            workspace);
  }
  // A tensor [..., columns] as [N, columns].
  static Tensor rows(const Tensor& x) {
    const int64_t columns = x.shape[x.shape.rank - 1];
    return x.reshaped({x.elements() / columns, columns});
  }
};

}  // namespace lathe
