#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

// Planning has shapes without memory, and must get the same number of bytes.
TEST(Workspace, IsAFunctionOfShapes) {
  float some = 0;
  const auto tensor = [&](Shape shape, bool real) {
    return Tensor{real ? &some : nullptr, DType::fp32, shape};
  };
  size_t bytes[2][8];
  for (bool real : {false, true}) {
    LinearForward forward;
    forward.y_no = forward.pre_activation_no = tensor({65, 33}, real);
    forward.x_ni = tensor({65, 17}, real), forward.weight_io = tensor({17, 33}, real);
    forward.bias_o = tensor({33}, real), forward.gelu = Gelu::tanh;
    LinearBackward backward;
    backward.dx_ni = backward.x_ni = tensor({65, 17}, real);
    backward.dy_no = tensor({65, 33}, real);
    backward.weight_io = backward.dweight_io = tensor({17, 33}, real);
    LinearCrossEntropy entropy;
    entropy.x_nc = entropy.dx_nc = tensor({65, 16}, real);
    entropy.wte_vc = entropy.dwte_vc = tensor({128, 16}, real);
    entropy.losses_n = tensor({65}, real), entropy.vocab_size = 97;
    LayerNormBackward layernorm;
    layernorm.d_residual_btc = layernorm.dout_btc = tensor({5, 13, 33}, real);
    layernorm.dweight_c = layernorm.dbias_c = layernorm.dx_sums_c = tensor({33}, real);
    LinearBackward summing = backward;
    summing.input_pre_activation_ni = summing.x_ni, summing.gelu = Gelu::tanh;
    summing.dx_sums_i = tensor({17}, real);
    GeluBackward gelu;
    gelu.dx = gelu.dy = gelu.x = tensor({65, 40}, real), gelu.dx_sums_i = tensor({40}, real);
    AttentionBackward attention;
    attention.dqkv_bt3c = attention.qkv_bt3c = tensor({5, 65, 3 * 32}, real);
    attention.dqkv_sums_3c = tensor({3 * 32}, real), attention.n_head = 2;
    EmbeddingBackward embedding;
    embedding.dx_btc = tensor({5, 13, 33}, real), embedding.tokens_bt = tensor({5, 13}, real);
    embedding.dwte_vc = tensor({128, 33}, real), embedding.dwpe_tc = tensor({20, 33}, real);
    const Ops& table = ops<float>();
    bytes[real][0] = table.workspace_bytes(forward);
    bytes[real][1] = table.workspace_bytes(backward);
    bytes[real][2] = table.workspace_bytes(entropy);
    bytes[real][3] = table.workspace_bytes(layernorm);
    bytes[real][4] = table.workspace_bytes(embedding);
    bytes[real][5] = table.workspace_bytes(summing);
    bytes[real][6] = table.workspace_bytes(gelu);
    bytes[real][7] = table.workspace_bytes(attention);
  }
  for (int i = 0; i < 8; ++i) EXPECT_EQ(bytes[0][i], bytes[1][i]) << i;
}

}  // namespace
}  // namespace lathe::testing
