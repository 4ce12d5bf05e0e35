// Matrix products of training, forward and backward, for each implementation that the machine has.
// Names: TYPE/BACKEND/PRODUCT/MxNxK. The figure to read is FLOP/s.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <vector>

#include "kernels/cpu/matmul.h"

namespace lathe::cpu {
namespace {

enum class Product { forward, input_gradient, weight_gradient };

struct Layer {
  const char* name;
  int64_t tokens, in, out;
  bool weight_is_out_in;  // like the tied embedding
};

// GPT-2 124M at batch 4, T 64 (the head in its own chunks), and shakespeare-cpu.
const Layer kLayers[] = {
    {"gpt2/qkv", 256, 768, 2304, false},
    {"gpt2/proj", 256, 768, 768, false},
    {"gpt2/fc", 256, 768, 3072, false},
    {"gpt2/fc_proj", 256, 3072, 768, false},
    {"gpt2/head", 256, 768, 50304, true},
    {"shakespeare/qkv", 768, 128, 384, false},
    {"shakespeare/proj", 768, 128, 128, false},
    {"shakespeare/fc", 768, 128, 512, false},
    {"shakespeare/fc_proj", 768, 512, 128, false},
    {"shakespeare/head", 768, 128, 65, true},
};

template <typename T, typename TOut>
MatmulArgs<T, TOut> shape_of(const Layer& layer, Product product) {
  MatmulArgs<T, TOut> x;
  const int64_t t = layer.tokens, in = layer.in, out = layer.out;
  switch (product) {
    case Product::forward:
      x.m = t, x.n = out, x.k = in, x.lda = in, x.transpose_b = layer.weight_is_out_in;
      break;
    case Product::input_gradient:
      x.m = t, x.n = in, x.k = out, x.lda = out, x.transpose_b = !layer.weight_is_out_in;
      break;
    case Product::weight_gradient:  // in the weight's own layout
      x.k = t, x.m = layer.weight_is_out_in ? out : in, x.n = layer.weight_is_out_in ? in : out;
      x.lda = x.m, x.transpose_a = true, x.accumulate = true;
      break;
  }
  x.ldb = x.transpose_b ? x.k : x.n;
  x.ldc = x.n;
  return x;
}

template <typename T>
std::vector<T> values(int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  uint32_t state = 1;
  for (T& x : v)
    x = T(static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f);
  return v;
}

template <typename T, typename TOut>
void run(benchmark::State& state, MatmulBackend backend, Layer layer, Product product, bool gelu) {
  MatmulArgs<T, TOut> x = shape_of<T, TOut>(layer, product);
  const auto a = values<T>(x.m * x.k), b = values<T>(x.k * x.n), bias = values<T>(x.n);
  std::vector<TOut> c(static_cast<size_t>(x.m * x.n));
  std::vector<T> z(gelu ? c.size() : 0);
  x.a = a.data(), x.b = b.data(), x.c = c.data();
  if (gelu) {
    x.bias = bias.data(), x.activation = Activation::gelu_tanh;
    x.pre_activation = z.data();
  }
  MatmulContext context(backend);
  context.run(x);
  for (auto _ : state) context.run(x);
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * x.m * x.n * x.k, benchmark::Counter::kIsIterationInvariantRate);
}

template <typename T, typename TOut>
void add(const char* type, MatmulBackend backend, const char* backend_name, const Layer& layer,
         Product product, const char* product_name, bool gelu = false) {
  const auto x = shape_of<T, TOut>(layer, product);
  if (MatmulContext(backend).backend_for(x) != backend) return;
  const std::string name = fmt::format("{}/{}/{}/{}/{}x{}x{}", type, backend_name, layer.name,
                                       product_name, x.m, x.n, x.k);
  benchmark::RegisterBenchmark(
      name.c_str(),
      [=](benchmark::State& state) { run<T, TOut>(state, backend, layer, product, gelu); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

template <typename T>
void add_type(const char* type) {
  const std::pair<MatmulBackend, const char*> backends[] = {{MatmulBackend::plain, "plain"},
                                                            {MatmulBackend::onednn, "onednn"},
                                                            {MatmulBackend::amx, "amx"}};
  for (const auto& [backend, name] : backends) {
    if (!matmul_backend_available(backend)) continue;
    for (const Layer& layer : kLayers) {
      add<T, T>(type, backend, name, layer, Product::forward, "forward");
      if (layer.out == 4 * layer.in)
        add<T, T>(type, backend, name, layer, Product::forward, "forward+gelu", true);
      add<T, T>(type, backend, name, layer, Product::input_gradient, "dx");
      add<T, float>(type, backend, name, layer, Product::weight_gradient, "dw");
    }
  }
}

}  // namespace
}  // namespace lathe::cpu

int main(int argc, char** argv) {
  lathe::cpu::add_type<float>("fp32");
  lathe::cpu::add_type<lathe::bf16>("bf16");
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("matmul", lathe::cpu::matmul_backend_name());
  benchmark::RunSpecifiedBenchmarks();
}
