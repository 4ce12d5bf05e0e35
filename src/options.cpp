#include "src/options.h"

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <numbers>
#include <sstream>

#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"
#include "src/flags.h"

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

CLI::Range counted() {
  return CLI::Range(int64_t{0}, int64_t{1} << 40);
}
CLI::Range positive() {
  return CLI::Range(int64_t{1}, int64_t{1} << 40);
}

void add_model_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Model");
  std::string names;
  for (const auto& [name, unused] : make_presets()) names += (names.empty() ? "" : ", ") + name;
  app.add_option("--model", o.model, "Preset: " + names);
  app.add_option("--n-layer", o.gpt2.n_layer, "Layers");
  app.add_option("--n-head", o.gpt2.n_head, "Attention heads");
  app.add_option("--n-embd", o.gpt2.n_embd, "Channels");
  app.add_option("--vocab-size", o.gpt2.vocab_size, "Vocabulary; 0 takes the data's")
      ->check(counted());
  app.add_option("--seq-len", o.gpt2.seq_len, "Tokens of a sequence");
  app.add_option("--bias", o.gpt2.bias, "Biases in LayerNorms and linear layers");
  app.add_option("--dropout", o.gpt2.dropout, "Probability of dropping, below 1")
      ->check(finite_in(0, 1));
  app.add_option_function<std::string>(
         "--gelu", [&o](const std::string& name) { o.gpt2.gelu = gelu_from_name(name); },
         "exact or tanh")
      ->default_str(std::string(name_of(o.gpt2.gelu)));
  app.add_option("--init-std", o.init_std, "Standard deviation of random weights")
      ->check(finite_from(0));
  app.add_option("--init", o.init, "random, or a directory with config.json and model.safetensors");
}

void add_data_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Data");
  app.add_option("--data", o.data, "Directory that build/prepare wrote");
  app.add_option("--sampling", o.sampling, "random windows, or sequential with a shuffle per epoch")
      ->check(CLI::IsMember({"random", "sequential"}));
  app.add_option("--reader", o.reader, "How shards are read: mmap, or mpi-io under mpirun")
      ->check(CLI::IsMember({"mmap", "mpi-io"}));
  app.add_option("--batch-size", o.batch_size, "Sequences per rank and micro-step")
      ->check(positive());
  app.add_option("--total-batch-size", o.total_batch_size,
                 "Tokens per step over all ranks, sets accumulation; 0: one micro-step")
      ->check(counted());
  app.add_option("--seed", o.seed, "Of weights, data and dropout")->check(not_negative());
}

void add_optimizer_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Optimizer");
  app.add_option("--steps", o.steps, "Steps of the run")->check(counted());
  app.add_option("--lr", o.lr, "Peak learning rate")->check(finite_from(0));
  app.add_option("--min-lr", o.min_lr, "Learning rate at the end of the decay")
      ->check(finite_from(0));
  app.add_option("--warmup-steps", o.warmup_steps, "Steps of linear warm-up")->check(counted());
  app.add_option("--lr-decay-steps", o.lr_decay_steps, "Step at which min-lr is reached; 0: steps")
      ->check(counted());
  app.add_option("--schedule", o.schedule, "cosine, linear, constant or wsd")
      ->check(CLI::IsMember({"cosine", "linear", "constant", "wsd"}));
  app.add_option("--weight-decay", o.optimizer.weight_decay, "On matrices only")
      ->check(finite_from(0));
  app.add_option("--beta1", o.optimizer.beta1, "AdamW")->check(finite_in(0, 0.999999));
  app.add_option("--beta2", o.optimizer.beta2, "AdamW")->check(finite_in(0, 0.999999));
  app.add_option("--eps", o.optimizer.eps, "AdamW")->check(finite_in(1e-30, 1));
  app.add_option("--grad-clip", o.optimizer.grad_clip, "Largest gradient norm; 0: no clipping")
      ->check(finite_from(0));
  app.add_option("--max-skipped-steps", o.max_skipped_steps,
                 "Steps in a row without a finite loss and gradient before the run stops")
      ->check(positive());
  app.add_flag("--stochastic-rounding", o.optimizer.stochastic_rounding,
               "Weights in bf16 are masters rounded up or down at random, without bias");
}

void add_machine_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Machine");
  app.add_option("--dtype", o.dtype, "fp32 or bf16 (with fp32 masters)")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--device", o.device, "auto (a GPU where one answers), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--threads", o.threads, "0: as many as there are cores, or OMP_NUM_THREADS")
      ->check(CLI::Range(0, 4096));
  app.add_flag("--tf32", o.cuda.tf32,
               "fp32 matrix products on a GPU may round their inputs to TF32; nothing on a CPU");
  app.add_flag("--deterministic", o.cuda.deterministic,
               "Reproducible matrix products on a GPU, not chosen by timing; nothing on a CPU");
  app.add_option("--autotune", o.cuda.autotune,
                 "Matrix products on a GPU are chosen by timing; not with --deterministic");
  app.add_option("--matmul-alignment", o.cuda.matmul_alignment,
                 "Bytes to which operands on a GPU count as aligned when products are planned")
      ->check(CLI::IsMember({16, 32, 64, 128, 256}));
  app.add_option("--chunk-logits", o.chunk_logits,
                 "Logits of the vocabulary that exist at once; 0: as many as memory allows")
      ->check(counted());
  app.add_option_function<std::string>(
         "--recompute", [&o](const std::string& name) { o.recompute = recompute_from_name(name); },
         "Activations made again in the backward pass, to save memory: none, gelu, layernorm or "
         "block; the same bits")
      ->default_str(std::string(name_of(o.recompute)));
}

void add_ranks_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Ranks");
  app.add_option("--zero-stage", o.zero_stage,
                 "1: each rank keeps its share of the optimizer's state; 0: all of it")
      ->check(CLI::Range(0, 1));
  app.add_option("--bucket-mb", o.bucket_mb,
                 "MiB of gradients that are reduced together; 0: each matrix by itself")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--reduce-dtype", o.reduce_dtype, "Numbers in which gradients are reduced")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--comm", o.comm, "auto (NCCL for GPUs where it is there, else MPI), mpi or nccl")
      ->check(CLI::IsMember({"auto", "mpi", "nccl"}));
  app.add_option("--comm-timeout", o.comm_timeout,
                 "Seconds that a collective may wait for a rank before the job ends")
      ->check(positive());
  app.add_option("--rendezvous", o.rendezvous,
                 "Where ranks without MPI meet: HOST:PORT or file:PATH");
  app.add_option("--lr-scale", o.lr_scale,
                 "lr and min-lr grow with the ranks: none, linear (x ranks) or sqrt")
      ->check(CLI::IsMember({"none", "linear", "sqrt"}));
  app.add_option("--replica-check-interval", o.replica_check_interval,
                 "Steps between comparisons of all ranks' weights; 0: never")
      ->check(counted());
}

void add_evaluation_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Evaluation and samples");
  app.add_option("--eval-interval", o.eval_interval, "Steps between evaluations; 0: never")
      ->check(counted());
  app.add_option("--eval-batches", o.eval_batches,
                 "Batches of an evaluation; 0: the whole validation set")
      ->check(counted());
  app.add_flag("--eval-only", o.eval_only, "Evaluate once and stop");
  app.add_option("--sample-interval", o.sample_interval, "Steps between samples; 0: never")
      ->check(counted());
  app.add_option("--sample-tokens", o.sample_tokens, "Tokens of a sample")->check(positive());
  app.add_option("--log-interval", o.log_interval,
                 "Steps between lines that stay; 0: every step, and on a terminal one line for all")
      ->check(counted());
}

void add_output_options(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->group("Output");
  app.add_option("--trace", o.trace, "File for a trace of the fourth step, which Perfetto shows");
  app.add_option("--tuning-log", o.tuning_log,
                 "File for the times of the matrix products that were tried on a GPU");
  app.add_option("--profile", o.profile,
                 "A:B shows the steps A to B-1 to Nsight, by phase, layer and operation");
  app.add_option("--out", o.out, "Directory of the run; none: nothing is written");
  app.add_option("--checkpoint-interval", o.checkpoint_interval,
                 "Steps between checkpoints; 0: only at the end")
      ->check(counted());
  app.add_option("--keep", o.keep, "Checkpoints kept")->check(positive());
  app.add_option("--resume", o.resume,
                 "auto (the newest in --out), never, or a checkpoint's directory");
  app.add_flag("--dry-run", o.dry_run, "Print configuration and memory plan, then stop");
  app.add_flag("--benchmark", o.benchmark, "Time steps: no evaluation, no sample, no file");
}

// The file a user writes: flat keys, named as the flags; a section or an unknown key is an error.
void add_options(CLI::App& app, TrainOptions& o) {
  app.set_config("--config", "", "TOML file with the same keys; flags override it");
  app.allow_config_extras(CLI::config_extras_mode::error);
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
  const auto number = [](std::string_view text, int64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  const std::string_view text = o.profile;
  const size_t colon = std::min(text.find(':'), text.size() - 1);
  int64_t begin = 0, end = 0;
  const bool numbers = number(text.substr(0, colon), begin) && number(text.substr(colon + 1), end);
  if (!numbers || begin < 1 || begin >= end || end > o.steps) {
    throw UserError(
        "--profile is '{}', but must be A:B for the steps A to B-1, counted from 0, with "
        "1 <= A < B <= {} (--steps); in step 0 the device chooses its matrix products",
        o.profile, o.steps);
  }
  if (!o.trace.empty())
    throw UserError("--profile {} and --trace {} watch the same operations: give one of them",
                    o.profile, o.trace);
  o.profile_begin = begin, o.profile_end = end;
}

double lr_factor(const std::string& scale, int ranks) {
  if (scale == "linear") return ranks;
  return scale == "sqrt" ? std::sqrt(static_cast<double>(ranks)) : 1;
}

void require_consistent(const TrainOptions& o) {
  if (o.optimizer.stochastic_rounding && o.number_type() != DType::bf16) {
    throw UserError(
        "--stochastic-rounding rounds weights to bf16, and --dtype is {}: take one away", o.dtype);
  }
  if (o.min_lr > o.lr) throw UserError("--min-lr {} is above --lr {}", o.min_lr, o.lr);
  if (o.data.empty() && !o.dry_run) {
    throw UserError("--data is missing: name a directory that build/prepare wrote");
  }
  if (o.gpt2.vocab_size == 0 && o.data.empty()) {
    throw UserError("--vocab-size is missing: give it, or --data whose vocabulary is taken");
  }
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
    } catch (const CLI::ConfigError& error) {
      std::string what = error.what();
      constexpr std::string_view kUnknown = "INI was not able to parse ";
      if (what.starts_with(kUnknown)) what = "there is no key " + what.substr(kUnknown.size());
      if (what.ends_with(".++")) what = "sections are not known, keys stand alone";
      throw UserError("--config {}: {} (see --help)", app.get_config_ptr()->as<std::string>(),
                      shortened(what, kMostReportedBytes));
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() != 0)
        throw UserError("{} (see --help)", shortened(error.what(), kMostReportedBytes));
      std::ostringstream text;
      *exit_code = app.exit(error, text);
      if (rank == 0) print_out(text.str());
      return options;
    }
    options = pass == 0 ? preset(options.model) : options;
    if (pass == 1) options.resolved = app.config_to_str(true, false);
  }
  require_consistent(options);
  parse_profile(options);
  const double factor = lr_factor(options.lr_scale, ranks);
  if (factor != 1) {
    options.lr *= factor, options.min_lr *= factor;
    options.resolve("lr", fmt::format("{}", options.lr));
    options.resolve("min-lr", fmt::format("{}", options.min_lr));
    options.resolve("lr-scale", "\"none\"");  // or --config with these would scale them again
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
  return total_batch_size / tokens;
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
