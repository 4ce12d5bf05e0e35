#include "src/options.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <map>
#include <numbers>
#include <sstream>

#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"
#include "src/config_file.h"
#include "src/flags.h"
#include "src/io/strict_json.h"
#include "src/io/toml.h"

namespace lathe {

namespace {

TrainOptions gpt2_preset(int64_t n_layer, int64_t n_head, int64_t n_embd) {
  TrainOptions options;
  options.gpt2 = {.n_layer = n_layer, .n_head = n_head, .n_embd = n_embd};
  return options;
}

// nanoGPT's character models: no biases, exact GELU, the vocabulary of the data.
TrainOptions shakespeare_preset(int64_t n_layer, int64_t n_head, int64_t n_embd, int64_t seq_len,
                                float dropout) {
  TrainOptions options;
  options.gpt2 = {.n_layer = n_layer,
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
  cpu.init_std =
      0.08f;  // about 1/sqrt(128); at 0.02 so small a model starts slowly (profiling/results)
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

// Each of these adds one group of flags, as --help shows them.

// Counts of steps, batches and the like; sums and products of two of them fit 64 bits.
constexpr int64_t kMost = int64_t{1} << 40;
// A step, counted from 0, is a word of the counter that random numbers are drawn with.
constexpr int64_t kMostSteps = UINT32_MAX;
// Beyond these a single update can make weights infinite, which no loss has warned of.
constexpr double kMostLr = 1e6;
constexpr float kMostDecay = 1e6f, kMostStd = 1e6f;
constexpr double kMostDouble = std::numeric_limits<double>::max();
constexpr int64_t kMostSeconds = 1'000'000'000;  // nanoseconds fit 64 bits

void add_model_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Model");
  std::string names;
  for (const auto& [name, unused] : make_presets()) names += (names.empty() ? "" : ", ") + name;
  app.add_option("--model", o.model, "Preset: " + names);
  add_number(app, "--n-layer", o.gpt2.n_layer, 1, 1024, "Layers");
  add_number(app, "--n-head", o.gpt2.n_head, 1, 1024, "Attention heads");
  add_number(app, "--n-embd", o.gpt2.n_embd, 1, 65536, "Channels");
  add_number(app, "--vocab-size", o.gpt2.vocab_size, 0, 65536, "Vocabulary; 0 takes the data's");
  add_number(app, "--seq-len", o.gpt2.seq_len, 1, 1 << 20, "Tokens of a sequence");
  add_boolean(app, "--bias", o.gpt2.bias, "Biases in LayerNorms and linear layers");
  add_number(app, "--dropout", o.gpt2.dropout, 0, 1, "Probability of dropping, below 1");
  app.add_option_function<std::string>(
         "--gelu", [&o](const std::string& name) { o.gpt2.gelu = gelu_from_name(name); },
         "exact or tanh")
      ->default_str(std::string(name_of(o.gpt2.gelu)));
  add_number(app, "--init-std", o.init_std, 0, kMostStd, "Standard deviation of random weights");
  app.add_option("--init", o.init, "random, or a directory with config.json and model.safetensors");
}

void add_data_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Data");
  app.add_option("--data", o.data, "Directory that build/prepare wrote");
  app.add_option("--sampling", o.sampling, "random windows, or sequential with a shuffle per epoch")
      ->check(CLI::IsMember({"random", "sequential"}));
  app.add_option("--reader", o.reader, "How shards are read: mmap, or mpi-io under mpirun")
      ->check(CLI::IsMember({"mmap", "mpi-io"}));
  add_number(app, "--batch-size", o.batch_size, 1, kMost, "Sequences per rank and micro-step");
  add_number(app, "--total-batch-size", o.total_batch_size, 0, kMost,
             "Tokens per step over all ranks, sets accumulation; 0: one micro-step");
  add_number(app, "--seed", o.seed, 0, UINT64_MAX, "Of weights, data and dropout");
}

void add_optimizer_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Optimizer");
  add_number(app, "--steps", o.steps, 0, kMostSteps, "Steps of the run");
  add_number(app, "--lr", o.lr, 0, kMostLr, "Peak learning rate");
  add_number(app, "--min-lr", o.min_lr, 0, kMostLr, "Learning rate at the end of the decay");
  add_number(app, "--warmup-steps", o.warmup_steps, 0, kMost, "Steps of linear warm-up");
  add_number(app, "--lr-decay-steps", o.lr_decay_steps, 0, kMost,
             "Step at which min-lr is reached; 0: steps");
  app.add_option("--schedule", o.schedule, "cosine, linear, constant or wsd")
      ->check(CLI::IsMember({"cosine", "linear", "constant", "wsd"}));
  add_number(app, "--weight-decay", o.optimizer.weight_decay, 0, kMostDecay, "On matrices only");
  add_number(app, "--beta1", o.optimizer.beta1, 0, 0.999999f, "AdamW");
  add_number(app, "--beta2", o.optimizer.beta2, 0, 0.999999f, "AdamW");
  add_number(app, "--eps", o.optimizer.eps, 1e-30f, 1, "AdamW");
  add_number(app, "--grad-clip", o.optimizer.grad_clip, 0, kMostDouble,
             "Largest gradient norm; 0: no clipping");
  add_number(app, "--max-skipped-steps", o.max_skipped_steps, 1, kMost,
             "Steps in a row without a finite loss and gradient before the run stops");
  add_switch(app, "--stochastic-rounding", o.optimizer.stochastic_rounding,
             "Weights in bf16 are masters rounded up or down at random, without bias");
}

void add_machine_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Machine");
  app.add_option("--dtype", o.dtype, "fp32 or bf16 (with fp32 masters)")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--device", o.device, "auto (a GPU where one answers), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  add_number(app, "--threads", o.threads, 0, 4096,
             "0: as many as there are cores, or OMP_NUM_THREADS");
  add_switch(app, "--tf32", o.cuda.tf32,
             "fp32 matrix products on a GPU may round their inputs to TF32; nothing on a CPU");
  add_switch(app, "--deterministic", o.cuda.deterministic,
             "Reproducible matrix products on a GPU, not chosen by timing; nothing on a CPU");
  add_boolean(app, "--autotune", o.cuda.autotune,
              "Matrix products on a GPU are chosen by timing; not with --deterministic");
  add_number(app, "--matmul-alignment", o.cuda.matmul_alignment, 16, 256,
             "Bytes to which operands on a GPU count as aligned when products are planned")
      ->check(CLI::IsMember({16, 32, 64, 128, 256}));
  add_number(app, "--chunk-logits", o.chunk_logits, 0, kMost,
             "Logits of the vocabulary that exist at once; 0: as many as memory allows");
  app.add_option_function<std::string>(
         "--recompute", [&o](const std::string& name) { o.recompute = recompute_from_name(name); },
         "Activations made again in the backward pass, to save memory: none, gelu, layernorm or "
         "block; the same bits")
      ->default_str(std::string(name_of(o.recompute)));
}

void add_ranks_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Ranks");
  add_number(app, "--zero-stage", o.zero_stage, 0, 1,
             "1: each rank keeps its share of the optimizer's state; 0: all of it");
  add_number(app, "--bucket-mb", o.bucket_mb, 0, 1 << 20,
             "MiB of gradients that are reduced together; 0: each matrix by itself");
  app.add_option("--reduce-dtype", o.reduce_dtype, "Numbers in which gradients are reduced")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--comm", o.comm, "auto (NCCL for GPUs where it is there, else MPI), mpi or nccl")
      ->check(CLI::IsMember({"auto", "mpi", "nccl"}));
  add_number(app, "--comm-timeout", o.comm_timeout, 1, kMostSeconds,
             "Seconds that a collective may wait for a rank before the job ends");
  app.add_option("--rendezvous", o.rendezvous,
                 "Where ranks without MPI meet: HOST:PORT, [IPV6]:PORT or file:PATH");
  app.add_option("--lr-scale", o.lr_scale,
                 "lr and min-lr grow with the ranks: none, linear (x ranks) or sqrt")
      ->check(CLI::IsMember({"none", "linear", "sqrt"}));
  add_number(app, "--replica-check-interval", o.replica_check_interval, 0, kMost,
             "Steps between comparisons of all ranks' weights; 0: never");
}

void add_evaluation_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Evaluation and samples");
  add_number(app, "--eval-interval", o.eval_interval, 0, kMost,
             "Steps between evaluations; 0: never");
  add_number(app, "--eval-batches", o.eval_batches, 0, kMost,
             "Batches of an evaluation; 0: the whole validation set");
  add_switch(app, "--eval-only", o.eval_only,
             "Evaluate the weights of --resume, --out or --init once and stop");
  add_number(app, "--sample-interval", o.sample_interval, 0, kMost,
             "Steps between samples; 0: never");
  add_number(app, "--sample-tokens", o.sample_tokens, 1, kMost, "Tokens of a sample");
  add_number(app, "--log-interval", o.log_interval, 0, kMost,
             "Steps between lines that stay; 0: every step, and on a terminal one line for all");
}

void add_output_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Output");
  app.add_option("--trace", o.trace, "File for a trace of the fourth step, which Perfetto shows");
  app.add_option("--tuning-log", o.tuning_log,
                 "File for the times of the matrix products that were tried on a GPU");
  app.add_option("--profile", o.profile,
                 "A:B shows the steps A to B-1 to Nsight, by phase, layer and operation");
  app.add_option("--out", o.out, "Directory of the run; none: nothing is written");
  add_number(app, "--checkpoint-interval", o.checkpoint_interval, 0, kMost,
             "Steps between checkpoints; 0: only at the end");
  add_number(app, "--keep", o.keep, 1, kMost, "Checkpoints kept");
  app.add_option("--resume", o.resume,
                 "auto (the newest in --out), never, or a checkpoint's directory");
  add_switch(app, "--dry-run", o.dry_run, "Print configuration and memory plan, then stop");
  add_switch(app, "--benchmark", o.benchmark, "Time steps: no evaluation, no sample, no file");
}

void add_options(CLI::App& app, TrainOptions& o) {
  app.set_config("--config", "", "TOML file with the same keys; flags override it");
  app.config_formatter(std::make_shared<ConfigFile>(app));
  add_model_options(app, o);
  add_data_options(app, o);
  add_optimizer_options(app, o);
  add_machine_options(app, o);
  add_ranks_options(app, o);
  add_evaluation_options(app, o);
  add_output_options(app, o);
}

// "A:B" into profile_begin and profile_end.
void parse_profile(TrainOptions& o) {
  if (o.profile.empty()) return;
  const std::string_view text = o.profile;
  const size_t colon = std::min(text.find(':'), text.size() - 1);
  const auto begin = parse_number<int64_t>(text.substr(0, colon));
  const auto end = parse_number<int64_t>(text.substr(colon + 1));
  if (!begin || !end || *begin < 1 || *begin >= *end || *end > o.steps) {
    throw UserError(
        "--profile is '{}', but must be A:B for the steps A to B-1, counted from 0, with "
        "1 <= A < B <= {} (--steps); in step 0 the device chooses its matrix products",
        o.profile, o.steps);
  }
  if (!o.trace.empty())
    throw UserError("--profile {} and --trace {} watch the same operations: give one of them",
                    o.profile, o.trace);
  o.profile_begin = *begin, o.profile_end = *end;
}

double lr_factor(const std::string& scale, int ranks) {
  if (scale == "linear") return ranks;
  return scale == "sqrt" ? std::sqrt(static_cast<double>(ranks)) : 1;
}

// A flag on the command line that does nothing beside the others is an error. Keys of a file are
// not, for config.toml has them all, nor are flags that do something on a GPU, with several ranks,
// or without --dry-run, --benchmark or --eval-only: one command goes everywhere.
void refuse_idle_flags(const TrainOptions& o) {
  const bool constant = o.schedule == "constant";
  struct Idle {
    const char* flag;
    bool idle;
    std::string why;
  };
  const Idle table[] = {
      {"init-std", o.init != "random", "with --init " + o.init + ", which has the weights"},
      {"min-lr", constant, "with --schedule constant"},
      {"lr-decay-steps", constant, "with --schedule constant"},
      {"autotune", o.cuda.autotune && o.cuda.deterministic, "with --deterministic"},
      {"tf32", o.cuda.tf32 && o.dtype != "fp32", "with --dtype " + o.dtype},
      {"sample-tokens", o.sample_interval == 0, "without --sample-interval"},
      {"checkpoint-interval", o.checkpoint_interval > 0 && o.out.empty(), "without --out"},
      {"keep", o.out.empty(), "without --out"},
      {"resume", o.resume == "auto" && o.out.empty(), "as auto without --out"},
      {"resume", o.resume != "auto" && o.resume != "never" && o.benchmark, "with --benchmark"},
      {"trace", o.eval_only, "with --eval-only"},
      {"profile", o.eval_only, "with --eval-only"},
      {"eval-only", o.eval_only && o.benchmark, "with --benchmark"},
  };
  for (const auto& [flag, idle, why] : table) {
    if (idle && o.source_of(flag) == FlagSource::command_line)
      throw UserError("--{} does nothing {}: take it away", flag, why);
  }
}

void require_consistent(const TrainOptions& o) {
  refuse_idle_flags(o);
  if (o.optimizer.stochastic_rounding && o.number_type() != DType::bf16) {
    throw UserError(
        "--stochastic-rounding rounds weights to bf16, and --dtype is {}: take one away", o.dtype);
  }
  if (o.schedule != "constant") {
    if (o.min_lr > o.lr) {
      throw UserError("--min-lr {} is above --lr {}: lower it, or take --schedule constant",
                      o.min_lr, o.lr);
    }
    // In a file it may be the --steps of a short trial, which 0 stood for.
    const bool meant =
        o.source_of("lr-decay-steps") == FlagSource::command_line || o.lr_decay_steps != o.steps;
    if (meant && o.lr_decay_steps > 0 && o.lr_decay_steps < o.warmup_steps) {
      throw UserError(
          "--lr-decay-steps {} is below --warmup-steps {}: the decay begins when the warm-up is "
          "over, raise the one or lower the other",
          o.lr_decay_steps, o.warmup_steps);
    }
  }
  if (o.data.empty() && !o.dry_run) {
    throw UserError("--data is missing: name a directory that build/prepare wrote");
  }
  if (o.gpt2.vocab_size == 0 && o.data.empty()) {
    throw UserError("--vocab-size is missing: give it, or --data whose vocabulary is taken");
  }
}

// Texts go into config.toml and trainer.json.
void require_utf8(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options({})) {
    for (const std::string& text : option->results()) {
      if (is_utf8(text)) continue;
      throw UserError(
          "{} {} is not UTF-8, but a run keeps it in its files: rename it, or go by a link",
          option->get_name(), json_quoted(text));
    }
  }
}

// Of the flags that have been parsed.
std::map<std::string, FlagSource> sources_of(const CLI::App& app) {
  std::map<std::string, FlagSource> sources;
  for (const CLI::Option* option : app.get_options({})) {
    if (option->count() > 0) sources[option->get_single_name()] = FlagSource::file;
  }
  for (const CLI::Option* option : app.parse_order())
    sources[option->get_single_name()] = FlagSource::command_line;
  return sources;
}

}  // namespace

TrainOptions preset(const std::string& model) {
  static const Presets presets = make_presets();
  const auto found = presets.find(model);
  if (found == presets.end()) {
    std::string names;
    for (const auto& [name, unused] : presets) names += (names.empty() ? "" : ", ") + name;
    throw UserError("--model is '{}', but must be one of {}", model, names);
  }
  TrainOptions options = found->second;
  options.model = model;
  return options;
}

TrainOptions parse_train_options(int argc, char** argv, int* exit_code, int ranks, int rank) {
  *exit_code = -1;
  TrainOptions options;
  // Twice: the first pass only learns the preset, whose values are the second pass's defaults.
  for (int pass = 0; pass < 2; ++pass) {
    CLI::App app("Trains a GPT-2. Flags override --config, which overrides the preset of --model.",
                 "train");
    app.option_defaults()->always_capture_default();
    add_options(app, options);
    if (pass == 0) {  // help is the second pass's, with the preset's defaults
      app.set_help_flag();
      app.add_flag("-h,--help");
    }
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() != 0)
        throw UserError("{} (see --help)", shortened(error.what(), kMostReportedBytes));
      std::ostringstream text;
      *exit_code = app.exit(error, text);
      if (rank == 0) print_out(text.str());
      return options;
    }
    if (pass == 0) {
      options = preset(options.model);
      continue;
    }
    require_utf8(app);
    options.resolved = app.config_to_str(true, false);
    options.sources = sources_of(app);
  }
  require_consistent(options);
  parse_profile(options);
  const double factor = lr_factor(options.lr_scale, ranks);
  if (factor != 1) {
    options.lr *= factor, options.min_lr *= factor;
    options.resolve("lr", fmt::format("{}", options.lr));
    options.resolve("min-lr", fmt::format("{}", options.min_lr));
    // Or --config with these would scale them again.
    options.resolve("lr-scale", toml_string("none"));
  }
  // The schedule is a run's own: it does not move when the run is continued with other --steps.
  options.lr_decay_steps = options.decay_steps();
  options.resolve("lr-decay-steps", fmt::format("{}", options.lr_decay_steps));
  return options;
}

void TrainOptions::resolve(const std::string& key, const std::string& value) {
  std::istringstream lines(resolved);
  std::string changed;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key + "=")) line.replace(key.size() + 1, std::string::npos, value);
    changed.append(line).append("\n");
  }
  resolved = changed;
}

int64_t TrainOptions::micro_steps(int64_t world_size) const {
  const int64_t tokens = batch_size * gpt2.seq_len * world_size;
  if (total_batch_size == 0) return 1;
  if (total_batch_size % tokens != 0) {
    throw UserError(
        "--total-batch-size {} is no multiple of the {} tokens of a micro-step "
        "(--batch-size {} x --seq-len {} x {} ranks)",
        total_batch_size, tokens, batch_size, gpt2.seq_len, world_size);
  }
  constexpr int64_t kMostMicroSteps = 1 << 20;  // the marks of their clocks are counted in 32 bits
  const int64_t count = total_batch_size / tokens;
  if (count > kMostMicroSteps) {
    throw UserError(
        "--total-batch-size {} takes {} micro-steps, but {} is the limit: raise --batch-size",
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
  if (options.schedule == "constant") return lr;
  if (now >= decay) return min_lr;
  if (options.schedule == "wsd") {
    const double from = decay - 0.2 * (decay - warmup);
    return now < from ? lr : lr + (min_lr - lr) * (now - from) / (decay - from);
  }
  const double ratio = (now - warmup) / (decay - warmup);
  const double left =
      options.schedule == "linear" ? 1 - ratio : 0.5 * (1 + std::cos(std::numbers::pi * ratio));
  return min_lr + left * (lr - min_lr);
}

}  // namespace lathe
