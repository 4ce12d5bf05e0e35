// What a micro-batch keeps from the forward pass for the backward pass, and what the backward pass
// recomputes instead (Chen et al., "Training deep nets with sublinear memory cost", 2016). By level
// of --recompute:
//
//   level      recomputed                         kept per token and layer   products repeated
//   none       nothing                            16 C and 4 + H statistics  none
//   gelu       gelu                               12 C and 4 + H statistics  none
//   layernorm  gelu, ln_1, ln_2                   10 C and 4 + H statistics  none
//   block      all but the residual at its input  C                          see below
//
// Recomputed tensors live in one set that all layers share. When the backward pass begins, the set
// still holds the last layer's, so only that layer recomputes nothing. `block` repeats the forward
// pass of every other layer up to gelu; the MLP's output is not needed again.
//
// Every level gives the same bits. GELU reads the rounded pre-activation and LayerNorm the rounded
// residual, fused or not, and both are stored; a product of the same matrices gives the same bits;
// a dropout mask depends only on where it is applied.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/arena.h"
#include "src/model/config.h"
#include "src/model/input_offload.h"

namespace lathe {

// In the order of what they recompute: each level includes the ones before it.
enum class Recompute : uint8_t { none, gelu, layernorm, block };

std::string_view name_of(Recompute recompute);

struct LayerActivations {
  Tensor ln_1, ln_1_mean, ln_1_rstd;
  Tensor qkv, attention, logsumexp;
  Tensor residual_mid, ln_2, ln_2_mean, ln_2_rstd;
  Tensor pre_gelu, gelu;
  Tensor residual_out;  // the next layer's input; layer 0's is the embedding
};

// What one micro-batch in flight keeps from its forward pass to its backward pass.
struct Activations {
  // For batch_size sequences of seq_len <= config.seq_len tokens. `offload`: the inputs of layers
  // lie in the host's memory; only with Recompute::block.
  Activations(const ModelConfig& config, DType dtype, int64_t batch_size, int64_t seq_len,
              Recompute recompute, Arena& arena, bool offload = false);

  // The residual stream at the input of layer l.
  const Tensor& layer_input(int64_t l) const {
    return l > 0 ? layers[static_cast<size_t>(l - 1)].residual_out : embedded;
  }

  int64_t batch_size, seq_len;
  Recompute recompute;
  std::unique_ptr<InputOffload> offload;  // null: everything stays on the device
  Tensor embedded;                        // the residual stream at layer 0
  std::vector<LayerActivations> layers;
  Tensor ln_f, ln_f_mean, ln_f_rstd;
  Tensor losses_n;
};

}  // namespace lathe
