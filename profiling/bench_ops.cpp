// Every operation at the shapes of GPT-2 124M (B 4, T 64) and of shakespeare-cpu (B 12, T 64, C
// 128). Figures: GB/s of the bytes that must cross the bus (from cost(), so caches may exceed the
// memory's rate), their share of the triad's rate, which is measured first, and FLOP/s if there are
// matmuls. Names: OPERATION/SHAPE/TYPE.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"

namespace lathe {
namespace {

struct Model {
  const char* name;
  int64_t B, T, C, H, V, vocab_size, parameters;
  bool bias;
};
const Model kModels[] = {{"gpt2", 4, 64, 768, 12, 50304, 50257, 124475904, true},
                         {"shakespeare", 12, 64, 128, 4, 128, 65, 817920, false}};

// Tensors of one benchmark; small positive values, so that nothing is denormal or infinite.
class Memory {
 public:
  explicit Memory(size_t bytes) : device_(make_cpu_device()), arena_(*device_, bytes) {}

  Tensor make(DType dtype, Shape shape) {
    const Tensor tensor = arena_.allocate(MemoryCategory::activations, dtype, shape);
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const float value = 0.01f + 0.001f * static_cast<float>(i % 17);
      if (dtype == DType::fp32) tensor.as<float>()[i] = value;
      if (dtype == DType::bf16) tensor.as<bf16>()[i] = bf16(value);
      if (dtype == DType::int32) tensor.as<int32_t>()[i] = static_cast<int32_t>(i % 61);
    }
    return tensor;
  }
  Tensor workspace(size_t bytes) { return make(DType::uint8, {static_cast<int64_t>(bytes)}); }
  const Ops& ops(DType dtype) { return device_->ops(dtype); }

 private:
  std::unique_ptr<Device> device_;
  Arena arena_;
};

// a[i] = b[i] + 3 c[i] over memory far larger than the caches, counted like STREAM.
double measure_triad() {
  constexpr int64_t kCount = int64_t{1} << 26;
  Memory memory(3 * kCount * sizeof(float));
  float* a = memory.make(DType::fp32, {kCount}).as<float>();
  const float* b = memory.make(DType::fp32, {kCount}).as<float>();
  const float* c = memory.make(DType::fp32, {kCount}).as<float>();
  double best = 0;
  for (int run = 0; run < 8; ++run) {
    const auto begin = std::chrono::steady_clock::now();
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < kCount; ++i) a[i] = b[i] + 3 * c[i];
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 3.0 * kCount * sizeof(float) / seconds.count());
    benchmark::DoNotOptimize(a[run]);
  }
  return best;
}

double triad = 0;

void report(benchmark::State& state, const OpCost& cost) {
  using benchmark::Counter;
  state.counters["B/s"] = Counter(cost.bytes, Counter::kIsIterationInvariantRate);
  state.counters["triad"] = Counter(cost.bytes / triad, Counter::kIsIterationInvariantRate);
  if (cost.flops > 0)
    state.counters["FLOP/s"] = Counter(cost.flops, Counter::kIsIterationInvariantRate);
}

using Bench = void (*)(benchmark::State&, const Model&, DType, bool dropout);

constexpr size_t kSmall = size_t{600} << 20;
StepInputs inputs{.seed = 1, .first_sequence = 0, .step = 1, .learning_rate = 1e-4f};

Dropout dropout_if(bool on) {
  return on ? Dropout{0.2f, 1, DropoutSite::attention_projection, &inputs} : Dropout{};
}

void embedding(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  EmbeddingForward forward{memory.make(type, {m.B, m.T, m.C}),
                           memory.make(DType::int32, {m.B, m.T}),
                           memory.make(type, {m.V, m.C}),
                           memory.make(type, {m.T, m.C}),
                           dropout_if(dropout),
                           0};
  for (auto _ : state) ops.run(forward, {});
  report(state, forward.cost());
}

void embedding_backward(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  EmbeddingBackward backward{memory.make(DType::fp32, {m.V, m.C}),
                             memory.make(DType::fp32, {m.T, m.C}),
                             memory.make(type, {m.B, m.T, m.C}),
                             memory.make(DType::int32, {m.B, m.T}),
                             dropout_if(dropout),
                             false};
  for (auto _ : state) ops.run(backward, {});
  report(state, backward.cost());
}

void layernorm(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const Shape btc{m.B, m.T, m.C};
  LayerNormForward forward;
  forward.out_btc = memory.make(type, btc), forward.residual_out_btc = memory.make(type, btc);
  forward.x_btc = memory.make(type, btc), forward.residual_in_btc = memory.make(type, btc);
  forward.mean_bt = memory.make(DType::fp32, {m.B, m.T});
  forward.rstd_bt = memory.make(DType::fp32, {m.B, m.T});
  forward.weight_c = memory.make(type, {m.C});
  if (m.bias) forward.bias_c = memory.make(type, {m.C});
  forward.dropout = dropout_if(dropout);
  for (auto _ : state) ops.run(forward, {});
  report(state, forward.cost());
}

void layernorm_backward(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const Shape btc{m.B, m.T, m.C};
  LayerNormBackward backward;
  backward.d_residual_btc = memory.make(type, btc);
  backward.dout_btc = memory.make(type, btc);
  backward.residual_out_btc = memory.make(type, btc);
  backward.mean_bt = memory.make(DType::fp32, {m.B, m.T});
  backward.rstd_bt = memory.make(DType::fp32, {m.B, m.T});
  backward.weight_c = memory.make(type, {m.C});
  backward.dweight_c = memory.make(DType::fp32, {m.C});
  if (m.bias) backward.dbias_c = memory.make(DType::fp32, {m.C});
  if (m.bias) backward.dx_sums_c = memory.make(DType::fp32, {m.C});
  if (dropout) backward.dx_btc = memory.make(type, btc);
  backward.dropout = dropout_if(dropout), backward.fresh = true;
  const Tensor workspace = memory.workspace(ops.workspace_bytes(backward));
  for (auto _ : state) ops.run(backward, workspace);
  report(state, backward.cost());
}

void gelu(benchmark::State& state, const Model& m, DType type, bool exact) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const Shape shape{m.B * m.T, 4 * m.C};
  GeluForward forward{memory.make(type, shape), memory.make(type, shape),
                      exact ? Gelu::exact : Gelu::tanh};
  for (auto _ : state) ops.run(forward, {});
  report(state, forward.cost());
}

void gelu_backward(benchmark::State& state, const Model& m, DType type, bool exact) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const Shape shape{m.B * m.T, 4 * m.C};
  GeluBackward backward;
  backward.dx = memory.make(type, shape), backward.dy = memory.make(type, shape);
  backward.x = memory.make(type, shape), backward.gelu = exact ? Gelu::exact : Gelu::tanh;
  if (m.bias) backward.dx_sums_i = memory.make(DType::fp32, {4 * m.C});
  const Tensor workspace = memory.workspace(ops.workspace_bytes(backward));
  for (auto _ : state) ops.run(backward, workspace);
  report(state, backward.cost());
}

// The first linear of the MLP, with GELU.
void linear(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const int64_t N = m.B * m.T;
  LinearForward forward;
  forward.y_no = memory.make(type, {N, 4 * m.C});
  forward.pre_activation_no = memory.make(type, {N, 4 * m.C});
  forward.x_ni = memory.make(type, {N, m.C}), forward.weight_io = memory.make(type, {m.C, 4 * m.C});
  if (m.bias) forward.bias_o = memory.make(type, {4 * m.C});
  forward.gelu = Gelu::tanh;
  const Tensor workspace = memory.workspace(ops.workspace_bytes(forward));
  for (auto _ : state) ops.run(forward, workspace);
  report(state, forward.cost());
}

// The second linear of the MLP, whose input was a GELU.
void linear_backward(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const int64_t N = m.B * m.T;
  LinearBackward backward;
  backward.dx_ni = memory.make(type, {N, 4 * m.C}), backward.x_ni = memory.make(type, {N, 4 * m.C});
  backward.input_pre_activation_ni = memory.make(type, {N, 4 * m.C});
  backward.dweight_io = memory.make(DType::fp32, {4 * m.C, m.C});
  if (m.bias) backward.dx_sums_i = memory.make(DType::fp32, {4 * m.C});
  backward.dy_no = memory.make(type, {N, m.C});
  backward.weight_io = memory.make(type, {4 * m.C, m.C}), backward.gelu = Gelu::tanh;
  const Tensor workspace = memory.workspace(ops.workspace_bytes(backward));
  for (auto _ : state) ops.run(backward, workspace);
  report(state, backward.cost());
}

void attention(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  AttentionForward forward{memory.make(type, {m.B, m.T, m.C}),
                           memory.make(DType::fp32, {m.B, m.H, m.T}),
                           memory.make(type, {m.B, m.T, 3 * m.C}), m.H, dropout_if(dropout)};
  const Tensor workspace = memory.workspace(ops.workspace_bytes(forward));
  for (auto _ : state) ops.run(forward, workspace);
  report(state, forward.cost());
}

void attention_backward(benchmark::State& state, const Model& m, DType type, bool dropout) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const Shape btc{m.B, m.T, m.C}, bt3c{m.B, m.T, 3 * m.C};
  const Tensor sums = m.bias ? memory.make(DType::fp32, {3 * m.C}) : Tensor{};
  AttentionBackward backward{memory.make(type, bt3c),
                             sums,
                             memory.make(type, btc),
                             memory.make(type, btc),
                             memory.make(DType::fp32, {m.B, m.H, m.T}),
                             memory.make(type, bt3c),
                             m.H,
                             dropout_if(dropout)};
  const Tensor workspace = memory.workspace(ops.workspace_bytes(backward));
  for (auto _ : state) ops.run(backward, workspace);
  report(state, backward.cost());
}

void logits(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  Logits args{memory.make(DType::fp32, {1, m.vocab_size}), memory.make(type, {1, m.C}),
              memory.make(type, {m.V, m.C}), m.vocab_size};
  for (auto _ : state) ops.run(args, {});
  report(state, args.cost());
}

void cross_entropy(benchmark::State& state, const Model& m, DType type, bool loss_only) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  const int64_t N = m.B * m.T;
  StepResults results;
  LinearCrossEntropy args;
  args.losses_n = memory.make(DType::fp32, {N});
  args.x_nc = memory.make(type, {N, m.C}), args.wte_vc = memory.make(type, {m.V, m.C});
  args.targets_n = memory.make(DType::int32, {N});
  args.vocab_size = m.vocab_size, args.results = &results, args.scale = 1.0 / 256;
  if (!loss_only) {
    args.dx_nc = memory.make(type, {N, m.C});
    args.dwte_vc = memory.make(DType::fp32, {m.V, m.C});
  }
  const Tensor workspace = memory.workspace(ops.workspace_bytes(args));
  for (auto _ : state) ops.run(args, workspace);
  report(state, args.cost());
}

void global_norm(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(kSmall);
  const Ops& ops = memory.ops(type);
  StepResults results;
  const SquareSums args{memory.make(DType::fp64, {norm_blocks(m.parameters)}),
                        memory.make(DType::fp32, {m.parameters})};
  for (auto _ : state) {
    ops.run(args, {});
    ops.run(ClipScale{args.sums, 1, &results}, {});
  }
  report(state, args.cost());
}

void adamw(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(static_cast<size_t>(m.parameters) * 18 + (size_t{1} << 20));
  const Ops& ops = memory.ops(type);
  StepResults results;
  results.clip_scale = 1;
  const OptimizerSegment segments[] = {{0, m.parameters - 1000, 0.1f},
                                       {m.parameters - 1000, m.parameters, 0}};
  AdamW args;
  for (Tensor* tensor : {&args.masters, &args.m, &args.v, &args.gradients})
    *tensor = memory.make(DType::fp32, {m.parameters});
  if (type == DType::bf16) args.weights = memory.make(type, {m.parameters});
  args.segments = segments, args.segment_count = 2, args.inputs = &inputs, args.results = &results;
  for (auto _ : state) ops.run(args, {});
  report(state, args.cost());
}

void cast(benchmark::State& state, const Model& m, DType type, bool) {
  Memory memory(static_cast<size_t>(m.parameters) * 8 + (size_t{1} << 20));
  const Ops& ops = memory.ops(type);
  Cast args{memory.make(type, {m.parameters}), memory.make(DType::fp32, {m.parameters})};
  for (auto _ : state) ops.run(args, {});
  report(state, args.cost());
}

void add(const std::string& name, Bench bench, bool flag = false) {
  for (const Model& model : kModels) {
    for (DType type : {DType::fp32, DType::bf16}) {
      benchmark::RegisterBenchmark(
          fmt::format("{}/{}/{}", name, model.name, name_of(type)).c_str(),
          [bench, &model, type, flag](benchmark::State& s) { bench(s, model, type, flag); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

void add_all() {
  add("embedding", embedding), add("embedding_backward", embedding_backward);
  add("layernorm", layernorm), add("layernorm+dropout", layernorm, true);
  add("layernorm_backward", layernorm_backward);
  add("layernorm_backward+dropout", layernorm_backward, true);
  add("gelu_tanh", gelu), add("gelu_exact", gelu, true);
  add("gelu_tanh_backward", gelu_backward), add("gelu_exact_backward", gelu_backward, true);
  add("linear_gelu", linear), add("linear_gelu_backward", linear_backward);
  add("attention", attention), add("attention_backward", attention_backward);
  add("logits", logits), add("cross_entropy", cross_entropy);
  add("cross_entropy_loss", cross_entropy, true);
  add("global_norm", global_norm), add("adamw", adamw), add("cast", cast);
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  lathe::triad = lathe::measure_triad();
  fmt::print("{}; triad {:.1f} GB/s\n", lathe::make_cpu_device()->name(), lathe::triad / 1e9);
  lathe::add_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
