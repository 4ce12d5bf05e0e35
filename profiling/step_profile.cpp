// Whole training steps, operation by operation, compared with their necessary parts: the matmuls
// alone, as oneDNN does them, and one pass of AdamW over its memory.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/observed_ops.h"
#include "profiling/matmul_floor.h"
#include "src/comm/make_communicator.h"
#include "src/io/flags.h"
#include "src/model/weights.h"
#include "src/train.h"
#include "src/train/options.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;
double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class TimedOps : public ObservedOps {
 public:
  using ObservedOps::ObservedOps;
  struct Total {
    int64_t calls = 0;
    double ms = 0;
    OpCost cost;
  };
  mutable std::map<std::string, Total> totals;

 protected:
  bool before(const Call&) const override {
    start_ = Clock::now();
    return true;
  }
  void after(const Call& call) const override {
    Total& total = totals[std::string(call.name)];
    total.ms += milliseconds_since(start_);
    ++total.calls;
    total.cost += call.cost;
  }

 private:
  mutable Clock::time_point start_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Step {
  Step(const TrainOptions& options, int64_t batch_size, int64_t seq_len)
      : device(make_cpu_device()),
        self(make_self_communicator(*device)),
        shape{.dtype = options.dtype, .batch_size = batch_size, .seq_len = seq_len},
        arena(*device,
              plan_training(options.model_config, options.optimizer, shape, *device, Mesh(*self))
                  .total()),
        trainer(options.model_config, options.optimizer, shape, *device, Mesh(*self), arena) {
    trainer.set_masters([this](int64_t begin, const Tensor& to) {
      initialize_parameters(trainer.parameters->layout(), 1, begin, to, *device);
    });
    trainer.round_weights(0);
    std::mt19937 random(1);
    std::vector<int32_t> ids(static_cast<size_t>(batch_size * seq_len));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % options.model_config.vocab_size);
    trainer.upload(0, ids.data(), ids.data());
  }

  double run() {
    const auto start = Clock::now();
    trainer.begin({.seed = 1, .learning_rate = 1e-4});
    enqueue_step(trainer, 0);
    return milliseconds_since(start);
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<Communicator> self;
  StepShape shape;
  Arena arena;
  Trainer trainer;
};

int profile(int argc, char** argv) {
  std::string name = "gpt2-124m";
  DType dtype = DType::fp32;
  int64_t batch_size = 4, seq_len = 64, steps = 5, vocab_size = 0;
  Flags flags("step_profile", "Profiles whole training steps.",
              {text("model", name, "Preset"),
               choice("dtype", dtype, {DType::fp32, DType::bf16}, "Number type"),
               number("batch-size", batch_size, 1, 1 << 20, "Sequences"),
               number("seq-len", seq_len, 1, 1 << 20, "Tokens of a sequence"),
               number("vocab-size", vocab_size, 0, 65536, "0: the preset's, or 65"),
               number("steps", steps, 1, 1 << 20, "Timed steps, after two that are not")});
  if (!flags.parse(argc, argv)) return 0;

  TrainOptions options = preset(name);
  options.dtype = dtype;
  if (vocab_size > 0) options.model_config.vocab_size = vocab_size;
  if (options.model_config.vocab_size == 0) options.model_config.vocab_size = 65;
  Step step(options, batch_size, seq_len);
  std::cout << fmt::format("{} {} batch {} x {}, {}\n", name, name_of(dtype), batch_size, seq_len,
                           step.device->name());

  for (int i = 0; i < 2; ++i) step.run();
  std::vector<double> plain, floors, adamw;
  MatmulFloor floor(options.model_config, options.dtype, batch_size * seq_len);
  const TimedOps timed(step.trainer.ops());
  const Ops& real = step.trainer.ops();
  // In turn, so that a change of speed affects all.
  for (int64_t i = 0; i < steps; ++i) {
    plain.push_back(step.run());
    floors.push_back(floor.run());
    step.trainer.use(timed);
    const double before = timed.totals["adamw"].ms;
    step.run();
    adamw.push_back(timed.totals["adamw"].ms - before);
    step.trainer.use(real);
  }
  double all = 0;
  for (const auto& [op, total] : timed.totals) all += total.ms;
  std::vector<std::pair<std::string, TimedOps::Total>> rows(timed.totals.begin(),
                                                            timed.totals.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  std::cout << fmt::format("{:<22}{:>7}{:>11}{:>8}{:>11}{:>9}\n", "operation", "calls", "ms/step",
                           "share", "GFLOP/s", "GB/s");
  for (const auto& [op, total] : rows) {
    std::cout << fmt::format("{:<22}{:>7}{:>11.3f}{:>7.1f}%{:>11.1f}{:>9.1f}\n", op,
                             total.calls / steps, total.ms / static_cast<double>(steps),
                             100 * total.ms / all, total.cost.flops / total.ms / 1e6,
                             total.cost.bytes / total.ms / 1e6);
  }
  const double ms = median(plain), floor_ms = median(floors) + median(adamw);
  std::cout << fmt::format(
      "step {:.2f} ms, {:.0f} tokens/s; matmuls alone ({}) {:.2f} ms + AdamW {:.2f} ms: step / "
      "(both) = {:.3f}\n",
      ms, 1e3 * static_cast<double>(batch_size * seq_len) / ms, floor.name(), median(floors),
      median(adamw), ms / floor_ms);
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("step_profile", [&] { return lathe::profile(argc, argv); });
}
