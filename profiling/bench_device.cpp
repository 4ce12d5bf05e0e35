// Times every operation of training GPT-2 and of sampling by itself, on any device, with the
// device's own clock; prints rates and the share of the device's limits.
//
//   build/bench_device [--device cuda] [--batch-size 16,64] [--dtype bf16] [--filter layernorm]
//
// Operations cycle through several sets of buffers (--rotate-mb), so that none finds its inputs in
// a cache, and are recorded, so that the host does not slow them down. `share` is the floor divided
// by the time. The floor is the longer of: FLOPs at the device's peak, if known, and bytes at the
// rate of a copy that is measured first.
#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <random>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/device/round.h"
#include "kernels/ops.h"
#include "src/io/flags.h"

namespace lathe {
namespace {

struct Sizes {
  int64_t B = 16, T = 1024, C = 768, H = 12, vocab_size = 50257;
  int64_t N() const { return B * T; }
  int64_t V() const { return round_up(vocab_size, 128); }
  // GPT-2's with twelve layers of this width.
  int64_t parameters() const { return V() * C + T * C + 12 * (12 * C * C + 13 * C) + 2 * C; }
};

// Hands out tensors of small random numbers; without an arena, only counts their bytes.
class Tensors {
 public:
  explicit Tensors(Device& device) : device_(device), pattern_(kPattern) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
    for (float& value : pattern_) value = uniform(random);
  }
  void use(Arena* arena) { arena_ = arena, bytes_ = 0; }
  size_t bytes() const { return bytes_; }

  Tensor make(DType dtype, Shape shape) {
    bytes_ += round_up(static_cast<size_t>(shape.elements()) * size_of(dtype), kArenaAlignment);
    if (arena_ == nullptr) return {pattern_.data(), dtype, shape};  // nobody computes with it
    const Tensor tensor = arena_->allocate(MemoryCategory::activations, dtype, shape);
    if (dtype == DType::bf16) fill<bf16>(tensor);
    if (dtype == DType::fp32) fill<float>(tensor);
    return tensor;
  }
  Tensor zeros(DType dtype, Shape shape) {
    const Tensor tensor = make(dtype, shape);
    if (arena_ != nullptr) device_.zero(tensor);
    return tensor;
  }
  Tensor tokens(Shape shape, int64_t vocab_size) {
    const Tensor tensor = make(DType::int32, shape);
    std::vector<int32_t> ids(static_cast<size_t>(shape.elements()));
    std::mt19937 random(2);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
    if (arena_ != nullptr) device_.upload(tensor, ids.data());
    return tensor;
  }
  // A struct in device memory, as operations take it.
  template <typename Struct>
  Struct* place(const std::vector<Struct>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(Struct));
    const Tensor tensor = make(DType::uint8, {bytes});
    if (arena_ != nullptr) device_.upload(tensor, values.data());
    return static_cast<Struct*>(tensor.data);
  }

 private:
  static constexpr size_t kPattern = size_t{1} << 20;
  template <typename T>
  void fill(const Tensor& tensor) {
    const std::vector<T> values(pattern_.begin(), pattern_.end());
    const Tensor flat = tensor.reshaped({tensor.elements()});
    for (int64_t done = 0; done < flat.elements(); done += kPattern) {
      const auto count = std::min<int64_t>(kPattern, flat.elements() - done);
      device_.upload(flat.rows(done, count), values.data());
    }
  }

  Device& device_;
  std::vector<float> pattern_;
  Arena* arena_ = nullptr;
  size_t bytes_ = 0;
};

// One call of an operation on its own tensors.
struct Call {
  Shape sizes_of;
  OpCost costs;
  size_t workspace = 0;
  std::function<void(const Tensor& workspace)> run;
};
using MakeCall = std::function<Call(Tensors&, const Ops&)>;
struct Case {
  std::string name;
  MakeCall make;
};

template <typename Args>
Call call(const Ops& ops, const Args& args) {
  return {args.sizes(), args.cost(), ops.workspace_bytes(args),
          [&ops, args](const Tensor& scratch) { ops.run(args, scratch); }};
}

void add_embedding(std::vector<Case>& cases, const Sizes& s, DType type) {
  const Shape btc{s.B, s.T, s.C};
  cases.push_back({"embedding_forward", [=](Tensors& t, const Ops& ops) {
                     EmbeddingForward args;
                     args.x_btc = t.make(type, btc);
                     args.tokens_bt = t.tokens({s.B, s.T}, s.vocab_size);
                     args.wte_vc = t.make(type, {s.V(), s.C});
                     args.wpe_tc = t.make(type, {s.T, s.C});
                     return call(ops, args);
                   }});
  cases.push_back({"embedding_backward", [=](Tensors& t, const Ops& ops) {
                     EmbeddingBackward args;
                     args.dwte_vc = t.make(DType::fp32, {s.V(), s.C});
                     args.dwpe_tc = t.make(DType::fp32, {s.T, s.C});
                     args.dx_btc = t.make(type, btc);
                     args.tokens_bt = t.tokens({s.B, s.T}, s.vocab_size);
                     return call(ops, args);
                   }});
}

void add_layernorm(std::vector<Case>& cases, const Sizes& s, DType type, bool drops) {
  const Shape btc{s.B, s.T, s.C}, bt{s.B, s.T};
  const std::string with = drops ? " dropout" : "";
  const auto dropout = [drops](Tensors& t) {
    if (!drops) return Dropout{};
    return Dropout{0.2f, 1, DropoutSite::attention_projection, t.place<StepInputs>({{.seed = 1}})};
  };
  cases.push_back({"layernorm_forward" + with, [=](Tensors& t, const Ops& ops) {
                     LayerNormForward args;
                     args.out_btc = t.make(type, btc), args.residual_out_btc = t.make(type, btc);
                     args.mean_bt = t.make(DType::fp32, bt), args.rstd_bt = t.make(DType::fp32, bt);
                     args.x_btc = t.make(type, btc), args.residual_in_btc = t.make(type, btc);
                     args.weight_c = t.make(type, {s.C}), args.bias_c = t.make(type, {s.C});
                     args.dropout = dropout(t);
                     return call(ops, args);
                   }});
  cases.push_back({"layernorm_backward" + with, [=](Tensors& t, const Ops& ops) {
                     LayerNormBackward args;
                     args.d_residual_btc = t.make(type, btc), args.dout_btc = t.make(type, btc);
                     args.residual_out_btc = t.make(type, btc);
                     args.mean_bt = t.make(DType::fp32, bt), args.rstd_bt = t.make(DType::fp32, bt);
                     args.weight_c = t.make(type, {s.C});
                     args.dweight_c = t.make(DType::fp32, {s.C});
                     args.dbias_c = t.make(DType::fp32, {s.C});
                     args.dx_sums_c = t.make(DType::fp32, {s.C});
                     if (drops) args.dx_btc = t.make(type, btc);
                     args.dropout = dropout(t);
                     return call(ops, args);
                   }});
}

// The four linear layers of a block, `inputs` to `outputs` channels, in multiples of C. As in the
// model, the operations before them compute the gradients of their biases.
struct Linear {
  const char* name;
  int64_t inputs, outputs;
};
constexpr Linear kLinears[] = {
    {"qkv", 1, 3}, {"attention projection", 1, 1}, {"fc", 1, 4}, {"mlp projection", 4, 1}};

void add_linear(std::vector<Case>& cases, const Sizes& s, DType type, const Linear& layer) {
  const int64_t N = s.N(), I = layer.inputs * s.C, O = layer.outputs * s.C;
  const bool gelu_out = layer.outputs == 4, gelu_in = layer.inputs == 4;
  const std::string name = layer.name;
  cases.push_back({"linear_forward " + name, [=](Tensors& t, const Ops& ops) {
                     LinearForward args;
                     args.y_no = t.make(type, {N, O}), args.x_ni = t.make(type, {N, I});
                     args.weight_io = t.make(type, {I, O}), args.bias_o = t.make(type, {O});
                     if (gelu_out) {
                       args.pre_activation_no = t.make(type, {N, O});
                       args.gelu = Gelu::tanh;
                     }
                     return call(ops, args);
                   }});
  cases.push_back({"linear_backward " + name, [=](Tensors& t, const Ops& ops) {
                     LinearBackward args;
                     args.dx_ni = t.make(type, {N, I}), args.dy_no = t.make(type, {N, O});
                     args.x_ni = t.make(type, {N, I}), args.weight_io = t.make(type, {I, O});
                     args.dweight_io = t.make(DType::fp32, {I, O});
                     if (gelu_in) {
                       args.dx_sums_i = t.make(DType::fp32, {I});
                       args.input_pre_activation_ni = t.make(type, {N, I});
                       args.gelu = Gelu::tanh;
                     }
                     return call(ops, args);
                   }});
}

void add_gelu(std::vector<Case>& cases, const Sizes& s, DType type) {
  const Shape shape{s.N(), 4 * s.C};
  for (const auto& [kind, gelu] : {std::pair{"tanh", Gelu::tanh}, {"exact", Gelu::exact}}) {
    cases.push_back(
        {std::string("gelu_forward ") + kind, [=, gelu = gelu](Tensors& t, const Ops& ops) {
           const GeluForward args{t.make(type, shape), t.make(type, shape), gelu};
           return call(ops, args);
         }});
    cases.push_back(
        {std::string("gelu_backward ") + kind, [=, gelu = gelu](Tensors& t, const Ops& ops) {
           const GeluBackward args{.dx = t.make(type, shape),
                                   .dx_sums_i = t.make(DType::fp32, {4 * s.C}),
                                   .dy = t.make(type, shape),
                                   .x = t.make(type, shape),
                                   .gelu = gelu};
           return call(ops, args);
         }});
  }
}

void add_attention(std::vector<Case>& cases, const Sizes& s, DType type) {
  const Shape btc{s.B, s.T, s.C}, bt3c{s.B, s.T, 3 * s.C}, bht{s.B, s.H, s.T};
  cases.push_back({"attention_forward", [=](Tensors& t, const Ops& ops) {
                     const AttentionForward args{t.make(type, btc), t.make(DType::fp32, bht),
                                                 t.make(type, bt3c), s.H};
                     return call(ops, args);
                   }});
  cases.push_back({"attention_backward", [=](Tensors& t, const Ops& ops) {
                     AttentionBackward args;
                     args.dqkv_bt3c = t.make(type, bt3c), args.dout_btc = t.make(type, btc);
                     args.dqkv_sums_3c = t.make(DType::fp32, {3 * s.C});
                     args.out_btc = t.make(type, btc), args.qkv_bt3c = t.make(type, bt3c);
                     args.logsumexp_bht = t.make(DType::fp32, bht), args.n_head = s.H;
                     return call(ops, args);
                   }});
}

void add_head(std::vector<Case>& cases, const Sizes& s, DType type) {
  for (const bool gradient : {true, false}) {
    cases.push_back({gradient ? "linear_cross_entropy" : "linear_cross_entropy loss only",
                     [=](Tensors& t, const Ops& ops) {
                       LinearCrossEntropy args;
                       args.losses_n = t.make(DType::fp32, {s.N()});
                       args.x_nc = t.make(type, {s.N(), s.C});
                       args.wte_vc = t.make(type, {s.V(), s.C});
                       args.targets_n = t.tokens({s.N()}, s.vocab_size);
                       args.vocab_size = s.vocab_size;
                       args.scale = 1 / static_cast<double>(s.N());
                       args.results = t.place<StepResults>({{}});
                       if (gradient) {
                         args.dx_nc = t.make(type, {s.N(), s.C});
                         args.dwte_vc = t.make(DType::fp32, {s.V(), s.C});
                       }
                       return call(ops, args);
                     }});
  }
  cases.push_back({"logits of one token", [=](Tensors& t, const Ops& ops) {
                     const Logits args{t.make(DType::fp32, {1, s.vocab_size}),
                                       t.make(type, {1, s.C}), t.make(type, {s.V(), s.C}),
                                       s.vocab_size};
                     return call(ops, args);
                   }});
}

void add_optimizer(std::vector<Case>& cases, const Sizes& s, DType type) {
  const int64_t P = s.parameters();
  cases.push_back({"square_sum", [=](Tensors& t, const Ops& ops) {
                     const SquareSum args{t.make(DType::fp32, {P}), t.place<StepResults>({{}})};
                     return call(ops, args);
                   }});
  cases.push_back({"adamw", [=](Tensors& t, const Ops& ops) {
                     AdamW args;
                     for (Tensor* tensor : {&args.masters, &args.m, &args.gradients})
                       *tensor = t.make(DType::fp32, {P});
                     args.v = t.zeros(DType::fp32, {P});  // squares
                     if (type == DType::bf16) args.weights = t.make(type, {P});
                     args.segments = t.place<OptimizerSegment>({{0, P, 0.1f, 0}});
                     args.segment_count = 1;
                     args.inputs = t.place<StepInputs>({{.seed = 1, .learning_rate = 1e-5f}});
                     args.results = t.place<StepResults>({{.clip_scale = 1}});
                     return call(ops, args);
                   }});
  cases.push_back({"cast", [=](Tensors& t, const Ops& ops) {
                     const Cast args{t.make(type, {P}), t.make(DType::fp32, {P})};
                     return call(ops, args);
                   }});
}

std::vector<Case> all_cases(const Sizes& s, DType type) {
  std::vector<Case> cases;
  add_embedding(cases, s, type);
  for (const bool drops : {false, true}) add_layernorm(cases, s, type, drops);
  for (const Linear& layer : kLinears) add_linear(cases, s, type, layer);
  add_gelu(cases, s, type);
  add_attention(cases, s, type);
  add_head(cases, s, type);
  add_optimizer(cases, s, type);
  return cases;
}

struct Timing {
  double median_ms = 0, least_ms = 0;
};

// Runs `body`, which is `calls` operations, once per round; a recording is made in the first two
// rounds.
Timing time_of(Device& device, int64_t calls, int64_t rounds, const std::function<void()>& body) {
  const auto round = [&] {
    device.replay(0, [&] {
      device.mark(0);
      body();
      device.mark(1);
    });
    device.synchronize();
    return device.milliseconds_between(0, 1) / static_cast<double>(calls);
  };
  round(), round();
  std::vector<double> times;
  for (int64_t i = 0; i < rounds; ++i) times.push_back(round());
  std::sort(times.begin(), times.end());
  device.forget_recordings();
  return {times[times.size() / 2], times.front()};
}

struct Options {
  DeviceKind device = DeviceKind::any;
  DType dtype = DType::bf16;
  std::string filter;
  std::vector<int64_t> batch_sizes{16, 64};
  Sizes sizes;
  int64_t rotate_mb = 256, rounds = 7;
  double budget_ms = 20;  // per round
  bool tiny = false;
};

class Bench {
 public:
  Bench(Device& device, const Options& options)
      : device_(device),
        options_(options),
        type_(options.dtype),
        ops_(device.ops(type_)),
        tensors_(device) {}

  // Bytes per second of a copy within the device, counting read and write.
  void measure_copy() {
    const int64_t elements = std::max<int64_t>(1, options_.rotate_mb) << 20;
    Arena arena(device_, 2 * static_cast<size_t>(elements));
    const Tensor from = arena.allocate(MemoryCategory::activations, DType::uint8, {elements});
    const Tensor to = arena.allocate(MemoryCategory::activations, DType::uint8, {elements});
    const Timing time = time_of(device_, 1, options_.rounds, [&] { device_.copy(to, from); });
    copy_rate_ = 2e3 * static_cast<double>(elements) / time.least_ms;
    std::cout << fmt::format("{}; {}; a copy moves {:.4g} GB/s", device_.name(),
                             name_of(options_.dtype), copy_rate_ / 1e9);
    if (const double peak = device_.peak_flops(type_); peak > 0)
      std::cout << fmt::format(", matrix products up to {:.4g} TFLOP/s", peak / 1e12);
    std::cout << "\n";
  }

  void run(const Sizes& sizes) {
    std::cout << fmt::format(
        "\nbatch {} x T {}, C {}, {} heads, vocabulary "
        "{}\n{:<38}{:<20}{:>10}{:>10}{:>11}{:>10}{:>8}\n",
        sizes.B, sizes.T, sizes.C, sizes.H, sizes.vocab_size, "operation", "shape", "us", "least",
        "GFLOP/s", "GB/s", "share");
    for (const Case& one : all_cases(sizes, type_)) {
      if (one.name.find(options_.filter) == std::string::npos) continue;
      measure(one);
      ++measured_;
    }
  }
  int64_t measured() const { return measured_; }

 private:
  void measure(const Case& one) {
    tensors_.use(nullptr);
    const Call planned = one.make(tensors_, ops_);
    const size_t bytes = tensors_.bytes();
    const auto rotate = static_cast<size_t>(options_.rotate_mb) << 20;
    const size_t sets = std::clamp<size_t>(ceil_div(rotate, bytes), 1, 64);
    Arena arena(device_, sets * bytes + round_up(planned.workspace + 1, kArenaAlignment));
    tensors_.use(&arena);
    std::vector<Call> calls;
    for (size_t i = 0; i < sets; ++i) calls.push_back(one.make(tensors_, ops_));
    const Tensor workspace = arena.allocate(MemoryCategory::workspace, DType::uint8,
                                            {static_cast<int64_t>(planned.workspace + 1)});
    size_t at = 0;
    const auto some = [&](int64_t count) {
      for (int64_t i = 0; i < count; ++i) calls[at++ % sets].run(workspace);
    };
    const double once = time_of(device_, 1, 1, [&] { some(1); }).median_ms;
    const auto count = std::clamp<int64_t>(
        static_cast<int64_t>(options_.budget_ms / std::max(once, 1e-3)), 1, 200);
    print(one, planned, time_of(device_, count, options_.rounds, [&] { some(count); }));
  }

  void print(const Case& one, const Call& call, const Timing& time) const {
    const double seconds = time.median_ms / 1e3, peak = device_.peak_flops(type_);
    const OpCost& cost = call.costs;
    const bool known = cost.flops == 0 || peak > 0;
    const double floor = std::max(peak > 0 ? cost.flops / peak : 0, cost.bytes / copy_rate_);
    std::cout << fmt::format(
        "{:<38}{:<20}{:>10.1f}{:>10.1f}{:>11}{:>10.1f}{:>8}\n", one.name, times_text(call.sizes_of),
        1e3 * time.median_ms, 1e3 * time.least_ms,
        cost.flops > 0 ? fmt::format("{:.1f}", cost.flops / seconds / 1e9) : "-",
        cost.bytes / seconds / 1e9, known ? fmt::format("{:.1f} %", 100 * floor / seconds) : "-");
    std::cout.flush();
  }

  Device& device_;
  const Options& options_;
  DType type_;
  const Ops& ops_;
  Tensors tensors_;
  double copy_rate_ = 0;
  int64_t measured_ = 0;
};

int bench(int argc, char** argv) {
  Options o;
  Flags flags(
      "bench_device", "Times every operation of training on a device.",
      {choice("device", o.device, {DeviceKind::any, DeviceKind::cpu, DeviceKind::cuda},
              "auto is a GPU if one answers, else the CPU"),
       choice("dtype", o.dtype, {DType::fp32, DType::bf16}, "Number type"),
       numbers("batch-size", o.batch_sizes, 1, 1 << 20, "One or several, with commas"),
       number("seq-len", o.sizes.T, 1, 1 << 20, "Tokens of a sequence"),
       number("n-embd", o.sizes.C, 8, 1 << 16, "Channels"),
       number("n-head", o.sizes.H, 1, 1 << 10, "Attention heads"),
       number("vocab-size", o.sizes.vocab_size, 1, 65536, "Vocabulary"),
       text("filter", o.filter, "Only operations with this in their names"),
       number("rotate-mb", o.rotate_mb, 0, 1 << 16, "MiB of buffers that calls go round through"),
       number("rounds", o.rounds, 1, 10000, "Times that are taken; the table has median and least"),
       toggle("tiny", o.tiny, "Shapes that a CPU which plays a GPU manages, one round")});
  if (!flags.parse(argc, argv)) return 0;
  if (o.tiny) {
    o.sizes = {.B = 2, .T = 16, .C = 64, .H = 2, .vocab_size = 61};
    o.batch_sizes = {2}, o.rotate_mb = 0, o.rounds = 1, o.budget_ms = 0;
  }
  if (o.sizes.C % o.sizes.H != 0 || o.sizes.C % 8 != 0)
    throw UserError("--n-embd {} must be a multiple of 8 and of --n-head {}", o.sizes.C, o.sizes.H);
  const auto device = make_device(o.device, 0);
  Bench bench(*device, o);
  bench.measure_copy();
  for (const int64_t batch_size : o.batch_sizes) {
    o.sizes.B = batch_size;
    bench.run(o.sizes);
  }
  if (bench.measured() == 0) throw UserError("--filter '{}' matches no operation's name", o.filter);
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("bench_device", [&] { return lathe::bench(argc, argv); });
}
