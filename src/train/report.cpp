#include "src/train/report.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "kernels/device/standard_streams.h"
#include "src/comm/banner.h"
#include "src/comm/imagined_ranks.h"
#include "src/io/file.h"
#include "src/train/flags.h"
#include "src/train/generate.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// Marks the file as ours, so that no other file is overwritten.
constexpr std::string_view kConfigHead = "# Written by train: every flag with its value.\n";

std::string counts_line(const ModelConfig& config) {
  const ParameterCounts counts = count_parameters(config);
  return fmt::format("{} ({} without position embeddings)", counts.total,
                     counts.without_position_embeddings);
}

std::string numbers_line(const StepShape& shape) {
  std::string numbers(name_of(shape.dtype));
  if (shape.recompute == Recompute::none) return numbers;
  return fmt::format("{}, recompute {}", numbers, name_of(shape.recompute));
}

std::string step_line(const StepShape& shape, int64_t ranks) {
  return fmt::format("{} tokens: {} sequences x {} tokens x {} micro-steps{}",
                     shape.batch_size * shape.seq_len * shape.micro_steps * ranks, shape.batch_size,
                     shape.seq_len, shape.micro_steps,
                     ranks > 1 ? fmt::format(" x {} ranks", ranks) : "");
}

// What the ranks share, and how gradients are reduced.
std::string parallel_line(const Setup& setup, int64_t ranks) {
  const DataParallelOptions& parallel = setup.shape.parallel;
  const ParameterLayout layout(setup.options.model_config, sharding_of(parallel, ranks));
  return fmt::format(
      "ZeRO stage {}, {} buckets, gradients reduced in {}{}", parallel.zero_stage,
      layout.buckets.size(), name_of(setup.options.reduce_dtype),
      setup.shape.micro_steps > 1 && parallel.reduce_each_micro_step ? ", each micro-step" : "");
}

// The model of --init, or the preset, and whether flags changed the preset's sizes.
std::string model_name(const TrainOptions& o) {
  if (o.init != "random") return o.init;
  ModelConfig other = preset(o.model).model_config;
  other.vocab_size = o.model_config.vocab_size, other.seq_len = o.model_config.seq_len;
  other.dropout = o.model_config.dropout;
  return other == o.model_config ? o.model : o.model + " with other sizes";
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct CommTimes {
  double total_ms = 0, exposed_ms = 0;
};

// exposed: how long the device's stream stood idle for a collective.
CommTimes comm_times(Device& device, std::span<const Span> spans) {
  CommTimes times;
  for (const Span& span : spans) {
    (span.waits ? times.exposed_ms : times.total_ms) +=
        device.milliseconds_between(span.from, span.to);
  }
  return times;
}

// The memory of a rank on its device, were there other numbers of ranks or another stage of ZeRO.
std::string memory_table(const Setup& setup, Device& device) {
  std::string table = "MiB of a rank on its device, by ranks and --zero-stage\n  ranks";
  for (int64_t stage = 0; stage <= kMostZeroStage; ++stage) table += fmt::format("{:>12}", stage);
  for (int ranks = 1; ranks <= 512; ranks *= 2) {
    table += fmt::format("\n  {:>5}", ranks);
    ImaginedRanks others(ranks);
    for (int64_t stage = 0; stage <= kMostZeroStage; ++stage) {
      TrainOptions o = setup.options;
      o.zero_stage = stage;
      StepShape shape = setup.shape;
      shape.parallel = parallel_options(o, ranks);
      const MemoryPlan plan =
          plan_training(o.model_config, o.optimizer, shape, device, Mesh(others));
      table += fmt::format("{:>12.1f}", static_cast<double>(plan.total()) / (1 << 20));
    }
  }
  return table + "\n";
}

}  // namespace

void print_setup(const Setup& setup, Device& device, const World& world, const Mesh& mesh) {
  const auto ranks = ranks_banner(world, mesh.world(), device.name());
  if (!mesh.leads()) return;
  const TrainOptions& o = setup.options;
  const ModelConfig& c = o.model_config;
  std::vector<std::pair<std::string, std::string>> rows = {
      {"model",
       fmt::format(
           "{}: {} layers, {} heads, {} wide, context {}, vocabulary {}{}, {} GELU, dropout {}",
           model_name(o), c.n_layer, c.n_head, c.n_embd, c.seq_len, c.vocab_size,
           c.bias ? "" : ", no biases", name_of(c.gelu), c.dropout)},
      {"parameters", counts_line(c)}};
  rows.insert(rows.end(), ranks.begin(), ranks.end());
  rows.emplace_back("numbers", numbers_line(setup.shape));
  rows.emplace_back("step", step_line(setup.shape, mesh.dp().size()));
  if (mesh.ranks() > 1) rows.emplace_back("parallel", parallel_line(setup, mesh.dp().size()));
  rows.emplace_back("resume",
                    setup.resume_from.empty() ? "a fresh run" : setup.resume_from.string());
  const std::string plan = "memory plan\n" + to_string(setup.plan);
  if (o.dry_run) {
    print_out("lathe\n" + format_table(rows) + plan + memory_table(setup, device) +
              "configuration\n" + to_toml(o));
    return;
  }
  Console console;
  console.banner("lathe", rows);
  console.print(plan);
}

Report::Report(Run& run)
    : run_(run),
      flops_per_step_(
          run.options().model_config.flops_per_token(run.options().model_config.seq_len) *
          static_cast<double>(run.tokens_per_step())),
      peak_flops_(run.trainer.device.peak_flops(run.setup().shape.dtype)),
      // With several ranks the output goes through the launcher, so no line is redrawn.
      console_({.live = run.mesh().ranks() > 1 ? std::optional(false) : std::nullopt,
                .log_interval = run.options().log_interval}) {
  const TrainOptions& o = run.options();
  if (!o.writes() || !prints()) return;
  const fs::path config = fs::path(o.out) / "config.toml";
  const fs::path& from = run.setup().resume_from;
  const bool resumes = !from.empty() && fs::equivalent(from / "..", o.out);
  if (!resumes && is_there(config) && !read_whole_file(config, 1 << 20).starts_with(kConfigHead)) {
    throw UserError("{} was not written by train: move it away, or name another --out",
                    config.string());
  }
  write_config();
  metrics_.emplace(o.out, run.setup().resume_from.empty() ? -1 : run.first_step);
}

void Report::write_config() const {
  write_file(fs::path(run_.options().out) / "config.toml",
             std::string(kConfigHead) + to_toml(run_.options()));
}

void Report::step(int64_t steps_done, const StepResults& results, int slot) {
  const StepClock& clock = run_.trainer.clocks[static_cast<size_t>(slot)];
  const auto now = std::chrono::steady_clock::now();
  const double seconds =
      std::chrono::duration<double>(now - std::max(reported_, clock.begun())).count();
  reported_ = now;
  StepMetrics m{.step = steps_done,
                .loss = results.loss,
                .lr = learning_rate(run_.options(), steps_done - 1),
                .grad_norm = results.grad_norm,
                .dt_ms = 1e3 * seconds,
                .forward_ms = clock.milliseconds(Phase::forward),
                .backward_ms = clock.milliseconds(Phase::backward),
                .optimizer_ms = clock.milliseconds(Phase::optimizer),
                .tokens_per_second = static_cast<double>(run_.tokens_per_step()) / seconds,
                .samples_per_second = static_cast<double>(run_.tokens_per_step()) /
                                      static_cast<double>(run_.options().model_config.seq_len) /
                                      seconds,
                .tokens = steps_done * run_.tokens_per_step()};
  if (peak_flops_ > 0) m.mfu = flops_per_step_ / seconds / peak_flops_ / run_.mesh().ranks();
  step_ms_.push_back(1e3 * seconds);
  double exposed = 0;
  const auto spans = run_.trainer.parameters->spans(slot);
  if (!spans.empty()) {
    const CommTimes times = comm_times(run_.trainer.device, spans);
    m.comm_ms = times.total_ms;
    m.comm_exposed_ms = exposed = times.exposed_ms;
  }
  busy_ms_.push_back(*m.forward_ms + *m.backward_ms + *m.optimizer_ms - exposed);
  if (!prints()) return;
  if (metrics_) metrics_->write(m);
  console_.step(m, run_.options().steps);
  if (results.skip) {
    console_.print(
        fmt::format("step {}: loss {} or gradient norm {} is not finite; the update is skipped",
                    steps_done, results.loss, results.grad_norm));
  }
}

void Report::validation(int64_t steps_done, double loss) {
  if (!prints()) return;
  const StepMetrics m{.step = steps_done, .val_loss = loss};
  // A run that stopped after an evaluation repeats it when resumed.
  if (metrics_ && metrics_->last_validation() != steps_done) metrics_->write(m);
  console_.print(fmt::format("step {}/{} | val {:.4f}", steps_done, run_.options().steps, loss));
}

// If the weights do not stay, all ranks generate the same text together, and one prints it.
void Report::sample(Run& run, Ending& ending) {
  const bool alone = run.trainer.parameters->weights_stay();
  if (alone && !prints()) return;
  const auto stop = [&] { return alone ? ending.requested() : ending.ask_all(); };
  std::string text;
  const Tokenizer& tokenizer = *run.setup().tokenizer;
  try {
    generate_text(
        *run.trainer.decoder, tokenizer, default_prompt(tokenizer), run.options().sample_tokens,
        {.temperature = 0.8, .top_k = 200, .seed = run.options().seed},
        [&](std::string_view part) { text += part; }, stop);
  } catch (const LogitsNotFinite& error) {  // the steps decide whether the run can continue
    text += fmt::format("[{}]", error.what());
  }
  if (stop() || !prints()) return;
  console_.print("sample:" + (text.starts_with('\n') ? text : "\n" + text));
}

void Report::before_save() {
  if (!metrics_) return;
  metrics_->sync();
  if (!is_there(fs::path(run_.options().out) / "config.toml")) write_config();
}

void Report::save_skipped(int64_t steps_done, int64_t bad_steps) {
  if (!prints()) return;
  console_.print(
      fmt::format("step {}: no checkpoint after {} bad steps in a row", steps_done, bad_steps));
}

void Report::spread() {
  if (run_.mesh().ranks() == 1 || busy_ms_.empty()) return;
  const double mine = median(busy_ms_);
  busy_ms_.clear();
  std::vector<double> all(static_cast<size_t>(run_.mesh().ranks()));
  run_.mesh().world().exchange(all.data(), &mine, sizeof(mine));
  if (!prints()) return;
  const auto [least, most] = std::minmax_element(all.begin(), all.end());
  console_.print(fmt::format("ranks: busy {:.1f} ms a step (rank {}) to {:.1f} ms (rank {})",
                             *least, least - all.begin(), *most, most - all.begin()));
}

void Report::finish(bool stopped) {
  spread();
  if (!prints()) return;
  const TrainOptions& o = run_.options();
  if (!stopped && run_.first_step >= o.steps) {
    console_.print(
        run_.first_step == 0
            ? "no step was taken: --steps is 0"
            : fmt::format("no step was taken: {} are done already, and --steps is {}; raise it to "
                          "continue",
                          run_.first_step, o.steps));
  }
  if (stopped) {
    console_.print(o.out.empty() ? "stopped" : "stopped; --resume auto continues from here");
  }
  if (o.benchmark && !step_ms_.empty()) {
    const double ms = median(step_ms_);
    console_.settle();
    print_out(fmt::format("median step {:.2f} ms, {:.0f} tokens/s over {} steps\n", ms,
                          1e3 * static_cast<double>(run_.tokens_per_step()) / ms, step_ms_.size()));
  }
}

}  // namespace lathe
