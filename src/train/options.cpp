#include "src/train/options.h"

#include <cmath>
#include <map>
#include <numbers>

namespace lathe {

namespace {

TrainOptions gpt2_preset(int64_t n_layer, int64_t n_head, int64_t n_embd) {
  TrainOptions options;
  options.model_config = {.n_layer = n_layer, .n_head = n_head, .n_embd = n_embd};
  return options;
}

// The character models of nanoGPT: no biases, exact GELU, the vocabulary of the data.
TrainOptions shakespeare_preset(int64_t n_layer, int64_t n_head, int64_t n_embd, int64_t seq_len,
                                float dropout) {
  TrainOptions options;
  options.model_config = {.n_layer = n_layer,
                          .n_head = n_head,
                          .n_embd = n_embd,
                          .vocab_size = 0,
                          .seq_len = seq_len,
                          .bias = false,
                          .dropout = dropout,
                          .gelu = Gelu::exact};
  options.lr = 1e-3;
  options.min_lr = 1e-4;
  options.warmup_steps = 100;
  options.optimizer.beta2 = 0.99f;
  return options;
}

using Presets = std::map<std::string, TrainOptions>;
Presets make_presets() {
  Presets presets = {{"gpt2-124m", gpt2_preset(12, 12, 768)},
                     {"gpt2-350m", gpt2_preset(24, 16, 1024)},
                     {"gpt2-774m", gpt2_preset(36, 20, 1280)},
                     {"gpt2-1558m", gpt2_preset(48, 25, 1600)},
                     {"shakespeare-cpu", shakespeare_preset(4, 4, 128, 64, 0)},
                     {"shakespeare-char", shakespeare_preset(6, 6, 384, 256, 0.2f)},
                     {"talk", shakespeare_preset(12, 12, 768, 1024, 0)}};
  TrainOptions& cpu = presets["shakespeare-cpu"];
  // About 1/sqrt(128): at 0.02 so small a model starts slowly (profiling/results).
  cpu.init_std = 0.08f;
  cpu.batch_size = 12;
  cpu.steps = 2000;
  TrainOptions& chars = presets["shakespeare-char"];
  chars.batch_size = 64;
  chars.steps = 5000;
  TrainOptions& talk = presets["talk"];
  talk.lr = 6e-4;
  talk.min_lr = 6e-5;
  talk.lr_decay_steps = 600000;
  talk.optimizer.beta2 = 0.95f;
  talk.batch_size = 64;
  talk.total_batch_size = 262144;
  talk.steps = 340;
  talk.eval_interval = 100;
  return presets;
}

const Presets& presets() {
  static const Presets presets = make_presets();
  return presets;
}

}  // namespace

std::string preset_names() {
  std::string names;
  for (const auto& [name, unused] : presets()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

TrainOptions preset(const std::string& model) {
  const auto found = presets().find(model);
  if (found == presets().end())
    throw UserError("--model is '{}', but must be one of {}", model, preset_names());
  TrainOptions options = found->second;
  options.model = model;
  return options;
}

std::string_view name_of(Schedule schedule) {
  constexpr std::string_view kNames[] = {"cosine", "linear", "constant", "wsd"};
  return kNames[static_cast<size_t>(schedule)];
}

std::string_view name_of(LrScale scale) {
  constexpr std::string_view kNames[] = {"none", "linear", "sqrt"};
  return kNames[static_cast<size_t>(scale)];
}

std::string_view name_of(ReduceEach each) {
  constexpr std::string_view kNames[] = {"auto", "step", "micro-step"};
  return kNames[static_cast<size_t>(each)];
}

std::string_view name_of(Reader reader) {
  return reader == Reader::mmap ? "mmap" : "mpi-io";
}

int64_t TrainOptions::micro_steps(int64_t ranks) const {
  const int64_t tokens = batch_size * model_config.seq_len * ranks;
  if (total_batch_size == 0) return 1;
  if (total_batch_size % tokens != 0) {
    throw UserError(
        "--total-batch-size {} is not a multiple of the {} tokens of a micro-step "
        "(--batch-size {} x --seq-len {} x {} ranks)",
        total_batch_size, tokens, batch_size, model_config.seq_len, ranks);
  }
  constexpr int64_t kMostMicroSteps = 1 << 20;  // marks of the step clocks have 32-bit numbers
  const int64_t count = total_batch_size / tokens;
  if (count > kMostMicroSteps) {
    throw UserError(
        "--total-batch-size {} needs {} micro-steps, but {} is the limit: raise --batch-size",
        total_batch_size, count, kMostMicroSteps);
  }
  return count;
}

double learning_rate(const TrainOptions& options, int64_t step) {
  const double lr = options.lr, min_lr = options.min_lr;
  if (step < options.warmup_steps) {
    return lr * static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps + 1);
  }
  const double decay = static_cast<double>(options.decay_steps());
  const double warmup = static_cast<double>(options.warmup_steps);
  const double now = static_cast<double>(step);
  if (options.schedule == Schedule::constant) return lr;
  if (now >= decay) return min_lr;
  if (options.schedule == Schedule::wsd) {
    const double from = decay - 0.2 * (decay - warmup);
    return now < from ? lr : lr + (min_lr - lr) * (now - from) / (decay - from);
  }
  const double ratio = (now - warmup) / (decay - warmup);
  const double left = options.schedule == Schedule::linear
                          ? 1 - ratio
                          : 0.5 * (1 + std::cos(std::numbers::pi * ratio));
  return min_lr + left * (lr - min_lr);
}

}  // namespace lathe
