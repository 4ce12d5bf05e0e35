#include "src/train/flags.h"

#include <cmath>
#include <fstream>
#include <sstream>

#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"
#include "src/io/json_text.h"
#include "src/io/toml.h"
#include "src/parallel/mesh.h"

namespace lathe {

namespace {

// Limit of steps, batches and other counts. The sum or product of two of them fits 64 bits.
constexpr int64_t kMost = int64_t{1} << 40;
// The step, counted from 0, is one 32-bit word of the random number generator's counter.
constexpr int64_t kMostSteps = UINT32_MAX;
// Beyond these limits one update can make weights infinite although every loss before was finite.
constexpr double kMostLr = 1e6;
constexpr float kMostDecay = 1e6f, kMostStd = 1e6f;
constexpr double kMostDouble = std::numeric_limits<double>::max();
constexpr int64_t kMostSeconds = 1'000'000'000;  // nanoseconds fit 64 bits

// Collects the table group by group, in the order of --help.
struct TableOfFlags {
  std::vector<TrainFlag> flags;
  std::string group;

  void add(OnResume on_resume, Flag flag) {
    flag.group = group;
    flags.push_back({std::move(flag), on_resume});
  }
};

void add_model_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Model";
  t.add(free, text("model", o.model, "Preset: " + preset_names()));
  t.add(same, number("n-layer", o.model_config.n_layer, 1, 1024, "Layers"));
  t.add(same, number("n-head", o.model_config.n_head, 1, 1024, "Attention heads"));
  t.add(same, number("n-embd", o.model_config.n_embd, 1, 65536, "Channels"));
  t.add(same,
        number("vocab-size", o.model_config.vocab_size, 0, 65536, "Vocabulary; 0: the data's"));
  t.add(same, number("seq-len", o.model_config.seq_len, 1, 1 << 20, "Tokens of a sequence"));
  t.add(same, boolean("bias", o.model_config.bias, "Biases in LayerNorms and linear layers"));
  t.add(same, number("dropout", o.model_config.dropout, 0, 1, "Probability of dropping, below 1"));
  t.add(same, choice("gelu", o.model_config.gelu, {Gelu::exact, Gelu::tanh}, "Form of GELU"));
  t.add(free, number("init-std", o.init_std, 0, kMostStd, "Standard deviation of random weights"));
  t.add(free,
        text("init", o.init, "random, or a directory with config.json and model.safetensors"));
}

void add_data_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Data";
  t.add(compared, text("data", o.data, "Directory that build/prepare wrote"));
  t.add(same, choice("sampling", o.sampling, {Sampling::random, Sampling::sequential},
                     "Windows at random, or in sequence, shuffled in each epoch"));
  t.add(free, choice("reader", o.reader, {Reader::mmap, Reader::mpi_io},
                     "How shards are read; mpi-io needs mpirun"));
  t.add(other_bits,
        number("batch-size", o.batch_size, 1, kMost, "Sequences per rank and micro-step"));
  t.add(free, number("total-batch-size", o.total_batch_size, 0, kMost,
                     "Tokens per step over all ranks, sets accumulation; 0: one micro-step"));
  t.add(same, number("seed", o.seed, 0, UINT64_MAX, "Of weights, data and dropout"));
}

void add_optimizer_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Optimizer";
  t.add(free, number("steps", o.steps, 0, kMostSteps, "Steps of the run"));
  t.add(same, number("lr", o.lr, 0, kMostLr, "Peak learning rate"));
  t.add(same, number("min-lr", o.min_lr, 0, kMostLr, "Learning rate at the end of the decay"));
  t.add(same, number("warmup-steps", o.warmup_steps, 0, kMost, "Steps of linear warm-up"));
  t.add(same, number("lr-decay-steps", o.lr_decay_steps, 0, kMost,
                     "Step at which min-lr is reached; 0: steps"));
  t.add(same, choice("schedule", o.schedule,
                     {Schedule::cosine, Schedule::linear, Schedule::constant, Schedule::wsd},
                     "Learning rate after the warm-up"));
  t.add(same, number("weight-decay", o.optimizer.weight_decay, 0, kMostDecay, "On matrices only"));
  t.add(same, number("beta1", o.optimizer.beta1, 0, 0.999999f, "Decay of AdamW's first moment"));
  t.add(same, number("beta2", o.optimizer.beta2, 0, 0.999999f, "Decay of AdamW's second moment"));
  t.add(same, number("eps", o.optimizer.eps, 1e-30f, 1, "Added to AdamW's denominator"));
  t.add(same, number("grad-clip", o.optimizer.grad_clip, 0, kMostDouble,
                     "Largest gradient norm; 0: no clipping"));
  t.add(free, number("max-skipped-steps", o.max_skipped_steps, 1, kMost,
                     "Steps in a row with a NaN or infinity before the run stops"));
  t.add(same, toggle("stochastic-rounding", o.optimizer.stochastic_rounding,
                     "Round masters to bf16 weights up or down at random, without bias"));
}

void add_machine_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Machine";
  t.add(same, choice("dtype", o.dtype, {DType::fp32, DType::bf16},
                     "Number type; bf16 has fp32 masters, moments and sums"));
  t.add(compared, choice("device", o.device, {DeviceKind::any, DeviceKind::cpu, DeviceKind::cuda},
                         "auto is a GPU if one answers, else the CPU"));
  t.add(compared, number("threads", o.threads, 0, 4096, "0: OMP_NUM_THREADS, or one per core"));
  t.add(other_bits_on_gpus,
        toggle("tf32", o.cuda.tf32, "GPU: fp32 products may round their inputs to TF32"));
  t.add(other_bits_on_gpus, toggle("deterministic", o.cuda.deterministic,
                                   "GPU: only products whose sums have a fixed order"));
  t.add(free, boolean("autotune", o.cuda.autotune,
                      "GPU: choose products by timing; not with --deterministic"));
  t.add(other_bits_on_gpus,
        choice("matmul-alignment", o.cuda.matmul_alignment, {16, 32, 64, 128, 256},
               "GPU: bytes to which operands count as aligned when products are planned"));
  t.add(other_bits, number("chunk-logits", o.chunk_logits, 0, kMost,
                           "Logits in memory at once; 0: as many as memory allows"));
  t.add(free, choice("recompute", o.recompute,
                     {Recompute::none, Recompute::gelu, Recompute::layernorm, Recompute::block},
                     "Activations to recompute in the backward pass, to save memory; same bits"));
  t.add(
      free,
      text("offload", o.offload_text,
           "What leaves the device, separated by commas: states=pinned (masters and moments, into "
           "the host's memory), states=cpu (there, and the host updates them), states=DIRECTORY "
           "(into a file), activations=pinned (inputs of layers, with --recompute block), "
           "weights=pinned (a rank's share, with --zero-stage 3)"));
}

void add_ranks_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Ranks";
  t.add(other_bits_over_nccl,
        number("zero-stage", o.zero_stage, 0, 3,
               "Of what each rank keeps only its share: 1 the optimizer's state, 2 also "
               "gradients, 3 also weights"));
  t.add(free, number("zero-slots", o.zero_slots, 2, 1024,
                     "Layers whose weights are there at once (--zero-stage 3), and with one more, "
                     "buckets of gradients (2 and 3)"));
  t.add(compared, choice("reduce-each", o.reduce_each,
                         {ReduceEach::automatic, ReduceEach::step, ReduceEach::micro_step},
                         "When gradients are reduced; auto is step with --zero-stage 0 and 1, "
                         "micro-step with 2 and 3"));
  t.add(other_bits_over_nccl,
        number("bucket-mb", o.bucket_mb, 0, 1 << 20,
               "MiB of gradients that are reduced together; 0: each matrix by itself"));
  t.add(other_bits_on_ranks, choice("reduce-dtype", o.reduce_dtype, {DType::fp32, DType::bf16},
                                    "Number type in which gradients are reduced"));
  t.add(other_bits_on_gpu_ranks,
        choice("comm", o.comm, {CommKind::any, CommKind::mpi, CommKind::nccl},
               "Transport; auto is NCCL for GPUs if it is there, else MPI"));
  t.add(free, number("comm-timeout", o.comm_timeout, 1, kMostSeconds,
                     "Seconds that a collective may wait for a rank before the job ends"));
  t.add(free, text("rendezvous", o.rendezvous,
                   "Where ranks without MPI meet: HOST:PORT, [IPV6]:PORT or file:PATH"));
  t.add(free, choice("lr-scale", o.lr_scale, {LrScale::none, LrScale::linear, LrScale::sqrt},
                     "Multiply lr and min-lr by the number of ranks, or its square root"));
  t.add(free, number("replica-check-interval", o.replica_check_interval, 0, kMost,
                     "Steps between comparisons of all ranks' weights; 0: never"));
}

void add_evaluation_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Evaluation and samples";
  t.add(free,
        number("eval-interval", o.eval_interval, 0, kMost, "Steps between evaluations; 0: never"));
  t.add(free, number("eval-batches", o.eval_batches, 0, kMost,
                     "Batches of an evaluation; 0: the whole validation set"));
  t.add(free, toggle("eval-only", o.eval_only,
                     "Evaluate the weights of --resume, --out or --init once and stop"));
  t.add(free,
        number("sample-interval", o.sample_interval, 0, kMost, "Steps between samples; 0: never"));
  t.add(free, number("sample-tokens", o.sample_tokens, 1, kMost, "Tokens of a sample"));
  t.add(free, number("log-interval", o.log_interval, 0, kMost,
                     "Steps between lines that stay; 0: every step, or one line that is redrawn on "
                     "a terminal"));
}

void add_output_flags(TableOfFlags& t, TrainOptions& o) {
  using enum OnResume;
  t.group = "Output";
  t.add(free, text("trace", o.trace, "File for a trace of the fourth step, for Perfetto"));
  t.add(free, text("tuning-log", o.tuning_log,
                   "File for the times of the matrix products that were tried on a GPU"));
  t.add(free, text("profile", o.profile,
                   "A:B shows the steps A to B-1 to Nsight, by phase, layer and operation"));
  t.add(free, text("out", o.out, "Directory of the run; without it nothing is written"));
  t.add(free, number("checkpoint-interval", o.checkpoint_interval, 0, kMost,
                     "Steps between checkpoints; 0: only at the end"));
  t.add(free, number("keep", o.keep, 1, kMost, "Checkpoints kept"));
  t.add(free, text("resume", o.resume, "auto (the newest in --out), never, or a checkpoint"));
  t.add(free, toggle("dry-run", o.dry_run, "Print configuration and memory plan, then stop"));
  t.add(free, toggle("benchmark", o.benchmark, "Time steps: no evaluation, sample or file"));
}

// Parses "A:B" into profile_begin and profile_end.
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

// Parses "KIND=PLACE,..." into offload.
void parse_offload(TrainOptions& o, int ranks) {
  std::istringstream list(o.offload_text);
  for (std::string item; std::getline(list, item, ',');) {
    constexpr std::string_view kStates = "states=";
    if (item == "states=pinned") {
      o.offload.states = StatesPlace::pinned;
    } else if (item == "states=cpu") {
      o.offload.states = StatesPlace::host;
    } else if (item.starts_with(kStates) && item.find('/') != std::string::npos) {
      o.offload.states = StatesPlace::files;
      o.offload.directory = item.substr(kStates.size());
    } else if (item == "activations=pinned") {
      o.offload.inputs = true;
    } else if (item == "weights=pinned") {
      o.offload.weights = MemorySpace::pinned;
    } else {
      throw UserError(
          "--offload has '{}', but knows states=pinned, states=cpu, states=DIRECTORY (a path with "
          "a /), activations=pinned and weights=pinned",
          item);
    }
  }
  if (o.offload.states == StatesPlace::files && o.zero_stage == 0 && ranks > 1) {
    throw UserError(
        "--offload {} with {} ranks needs --zero-stage 1, 2 or 3; otherwise each rank would write "
        "the states of the whole model",
        o.offload_text, ranks);
  }
  if (o.offload.weights != MemorySpace::device && o.zero_stage != 3) {
    throw UserError("--offload weights=pinned needs --zero-stage 3; it is {}", o.zero_stage);
  }
  if (o.offload.inputs && o.recompute != Recompute::block) {
    throw UserError(
        "--offload activations=pinned needs --recompute block, which keeps only the inputs of "
        "layers; --recompute is {}",
        name_of(o.recompute));
  }
}

double lr_factor(LrScale scale, int64_t ranks) {
  if (scale == LrScale::linear) return static_cast<double>(ranks);
  return scale == LrScale::sqrt ? std::sqrt(static_cast<double>(ranks)) : 1;
}

// A flag on the command line that has no effect together with the others is an error. A key of a
// file is not, because config.toml has all keys. A flag that would have an effect on a GPU, with
// several ranks, or without --dry-run, --benchmark or --eval-only is no error either, so that one
// command works everywhere.
void refuse_idle_flags(const TrainOptions& o) {
  const bool constant = o.schedule == Schedule::constant;
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
      {"tf32", o.cuda.tf32 && o.dtype != DType::fp32,
       fmt::format("with --dtype {}", name_of(o.dtype))},
      {"zero-slots", !o.reduces_each_micro_step(),
       fmt::format("with --zero-stage {}", o.zero_stage)},
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
      throw UserError("--{} does nothing {}: remove it", flag, why);
  }
}

void require_consistent(const TrainOptions& o) {
  refuse_idle_flags(o);
  if (o.optimizer.stochastic_rounding && o.dtype != DType::bf16) {
    throw UserError(
        "--stochastic-rounding rounds weights to bf16, but --dtype is {}: remove one of them",
        name_of(o.dtype));
  }
  if (o.zero_stage >= 2 && o.reduce_each == ReduceEach::step) {
    throw UserError(
        "--reduce-each step needs memory for all gradients, which --zero-stage {} does not have: "
        "use micro-step, or --zero-stage 1",
        o.zero_stage);
  }
  if (o.schedule != Schedule::constant) {
    if (o.min_lr > o.lr) {
      throw UserError("--min-lr {} is above --lr {}: lower it, or use --schedule constant",
                      o.min_lr, o.lr);
    }
    // In a file it may come from a short trial with --lr-decay-steps 0, which stands for --steps.
    const bool meant =
        o.source_of("lr-decay-steps") == FlagSource::command_line || o.lr_decay_steps != o.steps;
    if (meant && o.lr_decay_steps > 0 && o.lr_decay_steps < o.warmup_steps) {
      throw UserError(
          "--lr-decay-steps {} is below --warmup-steps {}: the decay begins after the warm-up; "
          "raise the former or lower the latter",
          o.lr_decay_steps, o.warmup_steps);
    }
  }
  if (o.data.empty() && !o.dry_run) {
    throw UserError("--data is missing: name a directory that build/prepare wrote");
  }
  if (o.model_config.vocab_size == 0 && o.data.empty()) {
    throw UserError("--vocab-size is missing: give it, or --data to use the data's vocabulary");
  }
}

// config.toml and trainer.json store the texts, and both must be UTF-8.
void require_utf8(const CommandLine& line) {
  for (const auto& [flag, text] : line.values) {
    if (is_utf8(text)) continue;
    throw UserError(
        "--{} {} is not UTF-8, but a run stores it in its files: rename it, or use a symbolic link",
        flag, json_quoted(text));
  }
}

// The flags that a file sets, in the order of its lines.
struct FileValue {
  CommandLine::Value value;
  std::string place;  // "--config FILE, line N: "
};
std::vector<FileValue> read_config(const std::string& path, const Flags& flags) {
  constexpr std::streamsize kMostBytes = 1 << 20;
  const std::string file = "--config " + path;
  std::ifstream input(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (!input.read(text.data(), kMostBytes + 1) && !input.eof())
    throw UserError("{}: cannot read this file", file);
  if (input.gcount() > kMostBytes) throw UserError("{} has more than {} bytes", file, kMostBytes);
  text.resize(static_cast<size_t>(input.gcount()));
  std::vector<FileValue> values;
  for (const TomlEntry& entry : parse_flat_toml(text, file)) {
    const std::string place = fmt::format("{}, line {}: ", file, entry.line);
    if (flags.find(entry.key) == nullptr || entry.key == "config") {
      throw UserError("{}there is no key {} (see train --help)", place,
                      shortened(entry.key, kMostQuotedBytes));
    }
    values.push_back({{entry.key, entry.value}, place});
  }
  return values;
}

// The value of a flag on the command line, or else in the file.
std::optional<std::string> given_text(const std::string& flag, const CommandLine& line,
                                      const std::vector<FileValue>& file = {}) {
  for (const auto& value : line.values)
    if (value.flag == flag) return value.text;
  for (const auto& [value, place] : file)
    if (value.flag == flag) return value.text;
  return {};
}

// Checks the flags together and computes those that depend on others or on the number of ranks.
void complete(TrainOptions& o, int ranks) {
  require_consistent(o);
  parse_profile(o);
  parse_offload(o, ranks);
  const double factor = lr_factor(o.lr_scale, mesh_shape(ranks).dp);
  o.lr *= factor, o.min_lr *= factor;
  // Otherwise --config with the config.toml of this run would scale them again.
  if (factor != 1) o.lr_scale = LrScale::none;
  // The schedule belongs to the run: resuming with other --steps must not change it.
  o.lr_decay_steps = o.decay_steps();
}

}  // namespace

std::vector<TrainFlag> train_flags(TrainOptions& options) {
  TableOfFlags table;
  add_model_flags(table, options);
  add_data_flags(table, options);
  add_optimizer_flags(table, options);
  add_machine_flags(table, options);
  add_ranks_flags(table, options);
  add_evaluation_flags(table, options);
  add_output_flags(table, options);
  return table.flags;
}

TrainOptions parse_train_options(int argc, char** argv, int* exit_code, int ranks, int rank) {
  *exit_code = -1;
  TrainOptions options;
  std::string config;
  std::vector<Flag> all = {
      text("config", config, "TOML file with the same keys; flags override it")};
  for (TrainFlag& flag : train_flags(options)) all.push_back(std::move(flag.flag));
  Flags flags(
      "train",
      "Trains a transformer. Flags override --config, which overrides the preset of --model.",
      std::move(all));

  const CommandLine line = flags.read(argc, argv);
  if (line.help) {
    options = preset(given_text("model", line).value_or(options.model));
    if (rank == 0) print_out(flags.help());
    *exit_code = 0;
    return options;
  }
  require_utf8(line);
  const std::optional<std::string> path = given_text("config", line);
  const auto file = path ? read_config(*path, flags) : std::vector<FileValue>();
  options = preset(given_text("model", line, file).value_or(options.model));
  for (const auto& [value, place] : file) {
    flags.set(value, place);
    options.sources[value.flag] = FlagSource::file;
  }
  for (const CommandLine::Value& value : line.values) {
    flags.set(value);
    options.sources[value.flag] = FlagSource::command_line;
  }
  complete(options, ranks);
  return options;
}

std::string to_toml(const TrainOptions& options) {
  TrainOptions copy = options;
  std::string toml;
  for (const auto& [flag, unused] : train_flags(copy)) {
    const std::string value = flag.text();
    toml += fmt::format("{}={}\n", flag.name, flag.is_text ? toml_string(value) : value);
  }
  return toml;
}

ConfigKeys config_keys(const TrainOptions& options) {
  TrainOptions copy = options;
  ConfigKeys keys;
  for (const auto& [flag, unused] : train_flags(copy)) keys[flag.name] = flag.text();
  return keys;
}

}  // namespace lathe
