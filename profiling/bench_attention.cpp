// Attention on the CPU: time and rate of the forward and backward passes, and of sampling with a
// cache. The rate counts the multiply-adds of the causal half: 2 T^2 C FLOPs forward and 5 T^2 C
// backward per sequence. Work above the diagonal does not count.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/ops.h"

namespace lathe {
namespace {

template <typename T>
const Ops& ops() {
  static const std::unique_ptr<Device> cpu = make_cpu_device();
  return cpu->ops(dtype_of<T>);
}

template <typename T>
Tensor tensor_of(std::vector<T>& values, Shape shape) {
  return Tensor{values.data(), dtype_of<T>, shape};
}

template <typename T>
std::vector<T> random_values(int64_t n) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(n));
  for (T& v : values) v = static_cast<T>(normal(generator));
  return values;
}

template <typename T>
struct Problem {
  int64_t B, T_, C, H;
  std::vector<T> qkv, out, dout, dqkv;
  std::vector<Accumulator<T>> logsumexp;
  std::vector<uint8_t> scratch;
  StepInputs inputs;
  AttentionForward forward;
  AttentionBackward backward;

  // Arguments: B, T, C, H, dropout in percent.
  explicit Problem(const benchmark::State& state)
      : B(state.range(0)), T_(state.range(1)), C(state.range(2)), H(state.range(3)) {
    qkv = random_values<T>(B * T_ * 3 * C), dout = random_values<T>(B * T_ * C);
    out = std::vector<T>(dout.size()), dqkv = std::vector<T>(qkv.size());
    logsumexp.resize(static_cast<size_t>(B * H * T_));
    Dropout dropout{static_cast<float>(state.range(4)) / 100.0f, 0, DropoutSite::attention,
                    &inputs};
    const Shape btc{B, T_, C}, bt3c{B, T_, 3 * C}, bht{B, H, T_};
    forward = {tensor_of(out, btc), tensor_of(logsumexp, bht), tensor_of(qkv, bt3c), H, dropout};
    backward = {tensor_of(dqkv, bt3c),
                {},
                tensor_of(dout, btc),
                tensor_of(out, btc),
                tensor_of(logsumexp, bht),
                tensor_of(qkv, bt3c),
                H,
                dropout};
    scratch.resize(std::max(ops<T>().workspace_bytes(forward), ops<T>().workspace_bytes(backward)));
  }
  Tensor workspace() { return tensor_of(scratch, {static_cast<int64_t>(scratch.size())}); }
  double causal_flops(double products) const {
    const auto t = static_cast<double>(T_);
    return products * 2 * static_cast<double>(B * C) * t * (t + 1) / 2;
  }
};

void report(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

template <typename T>
void bench_forward(benchmark::State& state) {
  Problem<T> problem(state);
  for (auto _ : state) ops<T>().run(problem.forward, problem.workspace());
  report(state, problem.causal_flops(2));
}

template <typename T>
void bench_backward(benchmark::State& state) {
  Problem<T> problem(state);
  ops<T>().run(problem.forward, problem.workspace());
  for (auto _ : state) ops<T>().run(problem.backward, problem.workspace());
  report(state, problem.causal_flops(5));
}

// Arguments: B, new tokens, C, H, tokens before.
template <typename T>
void bench_cached(benchmark::State& state) {
  const int64_t B = state.range(0), N = state.range(1), C = state.range(2), H = state.range(3),
                past = state.range(4), M = past + N;
  auto qkv = random_values<T>(B * N * 3 * C), out = random_values<T>(B * N * C);
  auto keys = random_values<T>(B * M * C), values = random_values<T>(B * M * C);
  AttentionCached args{tensor_of(out, {B, N, C}),
                       tensor_of(keys, {B, M, C}),
                       tensor_of(values, {B, M, C}),
                       tensor_of(qkv, {B, N, 3 * C}),
                       H,
                       past};
  std::vector<uint8_t> scratch(ops<T>().workspace_bytes(args));
  const Tensor workspace = tensor_of(scratch, {static_cast<int64_t>(scratch.size())});
  for (auto _ : state) ops<T>().run(args, workspace);
  state.SetBytesProcessed(state.iterations() * B * M * C * 2 * static_cast<int64_t>(sizeof(T)));
}

void training_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "T", "C", "H", "dropout"});
  for (int64_t dropout : {0, 20}) {
    b->Args({12, 64, 128, 4, dropout});    // shakespeare-cpu
    b->Args({4, 64, 768, 12, dropout});    // gpt2-124m, short
    b->Args({1, 1024, 768, 12, dropout});  // gpt2-124m
  }
  b->UseRealTime()->Unit(benchmark::kMillisecond);
}
void sampling_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "N", "C", "H", "past"});
  b->Args({1, 1, 768, 12, 1023})->Args({8, 1, 768, 12, 1023})->Args({1, 64, 768, 12, 0});
  b->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(bench_forward<float>)->Apply(training_shapes);
BENCHMARK(bench_backward<float>)->Apply(training_shapes);
BENCHMARK(bench_forward<bf16>)->Apply(training_shapes);
BENCHMARK(bench_backward<bf16>)->Apply(training_shapes);
BENCHMARK(bench_cached<float>)->Apply(sampling_shapes);
BENCHMARK(bench_cached<bf16>)->Apply(sampling_shapes);

}  // namespace
}  // namespace lathe

BENCHMARK_MAIN();
