// The contract of operations: everything that the model asks of a device, one entry per fused
// operation (one kernel, ideally, on a GPU). kernels/cpu and kernels/cuda implement it.
//
// Shapes: B sequences of a micro-batch, T tokens each, C channels (n_embd), H heads of C/H
// channels, V rows of the (padded) vocabulary, N = B T rows. Tensors are row-major and dense.
// Number types: "T" tensors (weights, activations and their gradients) have the table's dtype;
// "acc" tensors (statistics, losses, weight gradients, optimizer state) have accumulator_of(dtype).
// Sums are taken in acc; a value is rounded to T once, where an operation stores it.
//
// Weight gradients: accumulate == false overwrites them (first micro-step), true adds.
// Every sum has a fixed order, or is exact: the same inputs give the same bits at the same thread
// count.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/device/device.h"
#include "kernels/device/exact_sum.h"
#include "kernels/device/tensor.h"

namespace lathe {

// What the host sends to the device for a micro-step. Lives in device memory.
struct StepInputs {
  uint64_t seed = 0;            // Philox key of dropout
  uint64_t first_sequence = 0;  // global index of the micro-batch's first sequence within the step
  uint32_t step = 0;            // training step, from 0; a word of the Philox counter
  float learning_rate = 0;
  double stop_vote = 0;   // 1: this rank was asked to end the run after the step
  double first_loss = 0;  // initial value of the loss; NaN: the step must not update anything
};

// What the device knows of the current step. Lives in device memory, survives from step to step.
struct StepResults {
  double loss = 0;        // sum of the scaled losses since begin_step
  double stop_votes = 0;  // next to the loss: one collective sums both over the ranks
  double grad_norm = 0;   // of the whole gradient, before clipping; NaN if it is not finite
  double clip_scale = 0;  // what AdamW multiplies gradients by
  int64_t updates = 0;    // AdamW updates applied so far: the t of its bias correction
  int32_t skip = 0;       // 1: loss or norm is not finite, so AdamW changes nothing
  int32_t padding = 0;
  ExactSum squares;  // of the gradients that square_sum has seen since begin_step
};

// FLOPs and the bytes that must cross the memory bus at least once.
struct OpCost {
  double flops = 0;  // of matmuls and attention: what a tensor core could do
  double bytes = 0;
  OpCost& operator+=(const OpCost& other) {
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
};

enum class Gelu : uint8_t { none, exact, tanh };

// The place of a dropout mask; a word of the Philox counter is layer * 8 + site.
enum class DropoutSite : uint32_t { embedding, attention, attention_projection, mlp_projection };

// Element e of a mask (counted from the global sequence index, see each operation) is word e % 4 of
// philox4x32_10({e/4 low, e/4 high, layer*8+site, step}, seed), and is dropped if that word is less
// than p * 2^32. Kept values are scaled by 1/(1-p). p == 0 turns dropout off and reads nothing.
struct Dropout {
  float p = 0;
  uint32_t layer = 0;
  DropoutSite site = DropoutSite::embedding;
  const StepInputs* inputs = nullptr;  // device memory
};

// The arguments of an operation also have its name, its cost, and the sizes that distinguish its
// calls in a table: [N, I, O] for linear layers, [N, C, V] for the head, [B, T, C],
// [B, H, T, C/H] for attention, the number of elements for flat tensors.

// x = dropout(wte[token] + wpe[first_position + t]); mask element ((first_sequence + b) T + t) C +
// c. A token outside the vocabulary is an error if the device can check it first, as the CPU does.
// A GPU sets its row to NaN and leaves it out of the gradient.
struct EmbeddingForward {
  static constexpr std::string_view kName = "embedding_forward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor x_btc;      // out, T
  Tensor tokens_bt;  // int32, 0 <= token < V
  Tensor wte_vc, wpe_tc;
  Dropout dropout;
  int64_t first_position = 0;
};

// dwte[token] += dropout'(dx), dwpe[t] (+)= dropout'(dx), in token order. dwte is always added to:
// the language model's head has already written its part (tied embeddings).
struct EmbeddingBackward {
  static constexpr std::string_view kName = "embedding_backward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor dwte_vc, dwpe_tc;  // acc; dwpe has at least T rows: rows T.. are zeroed if !accumulate
  Tensor dx_btc, tokens_bt;
  Dropout dropout;
  bool accumulate = false;  // of dwpe
};

// residual_out = residual_in + dropout(x); out = (residual_out - mean) rstd weight + bias,
// eps 1e-5; the statistics are those of the rounded residual_out. Without x, residual_out is absent
// and residual_in is normalised. Mask element as in EmbeddingForward.
struct LayerNormForward {
  static constexpr std::string_view kName = "layernorm_forward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor out_btc, residual_out_btc;  // out, T
  Tensor mean_bt, rstd_bt;           // out, acc
  Tensor x_btc, residual_in_btc;
  Tensor weight_c, bias_c;  // bias may be absent
  Dropout dropout;
};

// d_residual += LayerNorm'(dout): the gradient of residual_out, and also of residual_in. On entry
// it holds the part that flows through the residual stream, unless fresh.
// dx = dropout'(d_residual), only if p > 0 (without dropout dx *is* d_residual; dx is absent).
// dx_sums (+)= the column sums of the stored dx, or of d_residual without dropout: the gradient of
// the bias of the projection whose output was added.
struct LayerNormBackward {
  static constexpr std::string_view kName = "layernorm_backward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor d_residual_btc;      // in and out, T
  Tensor dx_btc;              // out, T, or absent
  Tensor dweight_c, dbias_c;  // acc; dbias absent without bias
  Tensor dx_sums_c;           // acc, or absent
  Tensor dout_btc, residual_out_btc, mean_bt, rstd_bt, weight_c;
  Dropout dropout;
  bool fresh = false;       // d_residual holds nothing yet (the last LayerNorm)
  bool accumulate = false;  // of dweight, dbias, dx_sums
};

// y = gelu(x weight + bias). With GELU the pre-activation is rounded to T, stored, and read back
// rounded, so the fused form and gelu_forward give the same bits.
struct LinearForward {
  static constexpr std::string_view kName = "linear_forward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor y_no;               // out [N, O]
  Tensor pre_activation_no;  // out [N, O], absent if gelu is none
  Tensor x_ni;               // [N, I]
  Tensor weight_io;          // [I, O], as Hugging Face's Conv1D stores it
  Tensor bias_o;             // or absent
  Gelu gelu = Gelu::none;
};

// dx = dy weight^T, dweight (+)= x^T dy, dbias (+)= sum of dy's rows. If x was gelu(pre), give
// input_pre_activation and gelu. Then dx = round(dy weight^T) gelu'(pre), the gradient of pre, and
// dx_sums (+)= the column sums of the stored dx: the gradient of the bias of the layer that
// computed pre. That layer's own backward pass then has no dbias.
struct LinearBackward {
  static constexpr std::string_view kName = "linear_backward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor dx_ni;                // out, or absent
  Tensor dweight_io, dbias_o;  // acc; dbias absent without bias
  Tensor dx_sums_i;            // acc, or absent; only with gelu
  Tensor dy_no, x_ni, weight_io;
  Tensor input_pre_activation_ni;  // or absent
  Gelu gelu = Gelu::none;
  bool accumulate = false;
};

struct GeluForward {
  static constexpr std::string_view kName = "gelu_forward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor y, x;
  Gelu gelu = Gelu::tanh;
};
// dx = dy gelu'(x); dx may be dy. dx_sums (+)= the column sums of the stored dx [N, I].
struct GeluBackward {
  static constexpr std::string_view kName = "gelu_backward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor dx;         // out
  Tensor dx_sums_i;  // acc, or absent
  Tensor dy, x;
  Gelu gelu = Gelu::tanh;
  bool accumulate = false;  // of dx_sums
};

// Causal self-attention over blocks, never storing T x T (Dao et al., FlashAttention, 2022/2023).
// qkv holds q, then k, then v, each [H, C/H]. Scores are scaled by 1/sqrt(C/H). Mask element
// (((first_sequence + b) H + h) T + query) T + key, applied to the normalised probabilities.
struct AttentionForward {
  static constexpr std::string_view kName = "attention_forward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor out_btc;        // out, T
  Tensor logsumexp_bht;  // out, acc: of the scaled scores, natural logarithm
  Tensor qkv_bt3c;
  int64_t n_head = 1;
  Dropout dropout;
};
// dqkv_sums (+)= the column sums of the stored dqkv: the gradient of the bias of qkv.
struct AttentionBackward {
  static constexpr std::string_view kName = "attention_backward";
  OpCost cost() const;
  Shape sizes() const;
  Tensor dqkv_bt3c;     // out, T
  Tensor dqkv_sums_3c;  // acc, or absent
  Tensor dout_btc, out_btc, logsumexp_bht, qkv_bt3c;
  int64_t n_head = 1;
  Dropout dropout;
  bool accumulate = false;  // of dqkv_sums
};

// Attention with a KV cache, for sampling. The T new tokens of each sequence are at positions
// past .. past + T - 1. Their keys and values are written into the cache, then each query attends
// to all positions up to its own.
struct AttentionCached {
  static constexpr std::string_view kName = "attention_cached";
  OpCost cost() const;
  Shape sizes() const;
  Tensor out_btc;               // out, T
  Tensor keys_bmc, values_bmc;  // in and out, T: [B, M, C] with M >= past + T
  Tensor qkv_bt3c;
  int64_t n_head = 1;
  int64_t past = 0;
};

// logits = x wte^T for a few rows (sampling): columns [0, vocab_size) of the padded vocabulary.
struct Logits {
  static constexpr std::string_view kName = "logits";
  OpCost cost() const;
  Shape sizes() const;
  Tensor logits_nv;  // out, acc [N, vocab_size]
  Tensor x_nc, wte_vc;
  int64_t vocab_size = 0;
};

// Fused linear + cross-entropy over chunks of rows: however large the batch, only about
// logits_at_once logits exist at a time. A micro-batch with fewer is one chunk.
// losses[n] = logsumexp(logits[n, :vocab_size]) - logits[n, target]; targets < 0
// give loss 0 and no gradient; results->loss += scale * sum of losses. Rows vocab_size.. of wte are
// padding: no probability, no gradient. A target past the vocabulary is an error on the CPU; a GPU
// sets its row to NaN. With dx: dx = scale dlogits wte, dwte (+)= scale dlogits^T x (dlogits is
// scaled, then rounded to T once).
struct LinearCrossEntropy {
  static constexpr std::string_view kName = "linear_cross_entropy";
  OpCost cost() const;
  Shape sizes() const;
  Tensor losses_n;  // out, acc
  Tensor dx_nc;     // out, T; absent: loss only
  Tensor dwte_vc;   // acc; absent with dx
  Tensor x_nc, wte_vc;
  Tensor targets_n;  // int32
  int64_t vocab_size = 0;
  double scale = 1;            // 1 / tokens of the whole step
  int64_t logits_at_once = 0;  // 0: the device's choice, 2^24 on the CPU and 2^26 on a GPU
  bool accumulate = false;
  StepResults* results = nullptr;  // device memory
};

// The first operation of a step: results->loss = inputs->first_loss, stop_votes =
// inputs->stop_vote, squares = 0.
struct BeginStep {
  static constexpr std::string_view kName = "begin_step";
  OpCost cost() const;
  Shape sizes() const;
  StepResults* results = nullptr;
  const StepInputs* inputs = nullptr;
};

// The norm of the gradient, in two halves. First: results->squares += the sum of the squares,
// without rounding, so that ranks that hold any parts of a gradient get the bits of one rank that
// holds it all. (For a model in double each square is
// rounded to double and to a multiple of 2^-300, and one of 2^276 or more counts as not finite.)
struct SquareSum {
  static constexpr std::string_view kName = "square_sum";
  OpCost cost() const;
  Shape sizes() const;
  Tensor gradients;  // acc, flat
  StepResults* results = nullptr;
};

// Second: grad_norm = sqrt(results->squares rounded to double), clip_scale = min(1, grad_clip /
// grad_norm) (1 if grad_clip is 0), skip = loss or norm is not finite.
struct ClipScale {
  static constexpr std::string_view kName = "clip_scale";
  OpCost cost() const;
  Shape sizes() const;
  double grad_clip = 0;
  StepResults* results = nullptr;
};

// Elements [begin, end) of AdamW's tensors share a weight decay. Element e of the tensors has the
// number e + shift (src/model/parameters.h); shift may differ from 0 if there are several ranks.
// Shifts are multiples of 4, and so are the boundaries between different shifts.
struct OptimizerSegment {
  int64_t begin = 0, end = 0;
  float weight_decay = 0;
  int64_t shift = 0;
};

// AdamW (Loshchilov & Hutter, 2019) over flat parameters in one launch: with g = clip_scale
// gradient, t = updates + 1: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m/(1-b1^t) /
// (sqrt(v/(1-b2^t)) + eps) + decay w). Reads and writes masters (if T is acc, these are the weights
// themselves and `weights` is absent) and rounds them into weights. Counts one update if `last`:
// these are the step's last parameters. Does nothing if results->skip is set.
//
// stochastic_rounding (bf16 weights): the element with number e is
// stochastic_bf16_bits(its master, upper 16 bits of word e % 4 of philox(inputs->seed, e / 4,
// kPhiloxSiteRounding, t)). The counter has t, not the step, so weights are a function of masters,
// seed and the number of updates, all of which a checkpoint holds.
struct AdamW {
  static constexpr std::string_view kName = "adamw";
  OpCost cost() const;
  Shape sizes() const;
  Tensor masters, m, v, gradients;             // acc, flat
  Tensor weights;                              // T, flat, or absent
  const OptimizerSegment* segments = nullptr;  // device memory
  int64_t segment_count = 0;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  const StepInputs* inputs = nullptr;
  StepResults* results = nullptr;
  bool stochastic_rounding = false;
  bool last = true;
};

// destination = source, elementwise, rounded to the destination's type; with `accumulate`, which
// needs a destination in fp32 or fp64, destination += source. From fp32 to bf16 with `rounding`:
// rounds as AdamW rounds weights stochastically, with t = rounding->step; the first element has the
// number first_element, a multiple of 4 (src/model/parameters.h).
struct Cast {
  static constexpr std::string_view kName = "cast";
  OpCost cost() const;
  Shape sizes() const;
  Tensor destination, source;
  const StepInputs* rounding = nullptr;  // device memory
  int64_t first_element = 0;
  bool accumulate = false;
};

// Is called for each part of an operation (its kernels, its matrix products) in the order in which
// the device enqueues them. A part lasts until the next one or the end of its operation. `name` is
// a literal; `sizes` of a product [m, k] times [k, n] are [m, k, n]. Only operations of several
// parts report them; the device decides which operations do.
class PartObserver {
 public:
  virtual ~PartObserver() = default;
  virtual void part(std::string_view name, const Shape& sizes, const OpCost& cost) = 0;
};

inline constexpr int64_t kNoLayer = -2;

// One operation of the table: what a device does for these arguments, and the bytes of scratch that
// it needs. `workspace` (uint8) holds at least workspace_bytes(args). The memory planner takes the
// maximum over all operations that will run.
template <typename Args>
class Operation {
 public:
  virtual void run(const Args& args, const Tensor& workspace) const = 0;
  virtual size_t workspace_bytes(const Args& args) const = 0;

 protected:
  ~Operation() = default;
};

template <typename... Args>
class Table : public Operation<Args>... {
 public:
  virtual ~Table() = default;
  using Operation<Args>::run...;
  using Operation<Args>::workspace_bytes...;
};

// The list of all operations. To add one: its struct, its cost and sizes (kernels/ops.cpp), a line
// here, and a function per device (define_operation.h in kernels/cpu and kernels/cuda).
using Operations = Table<EmbeddingForward, EmbeddingBackward, LayerNormForward, LayerNormBackward,
                         LinearForward, LinearBackward, GeluForward, GeluBackward, AttentionForward,
                         AttentionBackward, AttentionCached, Logits, LinearCrossEntropy, BeginStep,
                         SquareSum, ClipScale, AdamW, Cast>;

// What the model runs on.
class Ops : public Operations {
 public:
  virtual DType dtype() const = 0;

  // The following operations belong to this layer of the model, numbered as in
  // src/model/transformer.h; kNoLayer: to none. Only tables that observe use it; it changes no
  // result.
  virtual void enter_layer(int64_t) const {}
};

// Implements every operation of Ops by two member templates of Self:
//   template <typename Args> void call(const Args& args, const Tensor& workspace) const;
//   template <typename Args> size_t bytes(const Args& args) const;
// usage: class Mine : public ImplementsOps<Mine> { ... };
template <typename Self, typename... Args>
class Implements;

template <typename Self>
class Implements<Self> : public Ops {
 public:
  using Ops::run;
  using Ops::workspace_bytes;
};

template <typename Self, typename First, typename... Rest>
class Implements<Self, First, Rest...> : public Implements<Self, Rest...> {
 public:
  using Implements<Self, Rest...>::run;
  using Implements<Self, Rest...>::workspace_bytes;
  void run(const First& args, const Tensor& workspace) const final { self().call(args, workspace); }
  size_t workspace_bytes(const First& args) const final { return self().bytes(args); }

 private:
  const Self& self() const { return static_cast<const Self&>(*this); }
};

template <typename Self, typename... Args>
Implements<Self, Args...> implements_all_of(const Table<Args...>*);
template <typename Self>
using ImplementsOps = decltype(implements_all_of<Self>(static_cast<const Operations*>(nullptr)));

}  // namespace lathe
