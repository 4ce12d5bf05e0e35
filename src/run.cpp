#include "src/run.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <iostream>
#include <map>
#include <set>
#include <sstream>

#include "src/io/checkpoint.h"
#include "src/model/weights.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;
using Keys = std::map<std::string, std::string>;

// "key=value" lines of the resolved configuration.
Keys keys_of(const std::string& resolved) {
  Keys keys;
  std::istringstream lines(resolved);
  for (std::string line; std::getline(lines, line);) {
    const size_t equals = line.find('=');
    if (equals == std::string::npos || line.starts_with('#')) continue;
    std::string value = line.substr(equals + 1);
    std::erase(value, '"');
    keys[line.substr(0, equals)] = value;
  }
  return keys;
}

// 0.001 and 1e-3 are one value.
bool same_value(const std::string& a, const std::string& b) {
  double x = 0, y = 0;
  const auto number = [](const std::string& text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  return a == b || (number(a, x) && number(b, y) && x == y);
}

// What may change when a run is taken up again; everything else would make it another run.
const std::set<std::string>& changeable() {
  static const std::set<std::string> keys = {"steps",
                                             "eval-interval",
                                             "eval-batches",
                                             "eval-only",
                                             "sample-interval",
                                             "sample-tokens",
                                             "log-interval",
                                             "out",
                                             "checkpoint-interval",
                                             "keep",
                                             "resume",
                                             "data",
                                             "dry-run",
                                             "benchmark",
                                             "device",
                                             "threads",
                                             "init",
                                             "init-std",
                                             "model",
                                             "max-skipped-steps",
                                             "recompute",
                                             "tf32",
                                             "deterministic"};
  return keys;
}

void refuse_changes(const Keys& before, const Keys& now, const fs::path& checkpoint) {
  for (const auto& [key, value] : now) {
    const auto found = before.find(key);
    if (changeable().contains(key) || (found != before.end() && same_value(found->second, value)))
      continue;
    if (key == "lr-decay-steps" && found != before.end()) {
      if (now.at("schedule") == "constant") continue;
      throw UserError(
          "{} was made with a learning rate that falls until step {}, but now it would until step "
          "{}: add --lr-decay-steps {} to go on as before, to any number of --steps",
          checkpoint.string(), found->second, value, found->second);
    }
    throw UserError(
        "{} was made with --{} {}, but now it is {}: continue with the former value, or begin "
        "anew with --resume never and another --out",
        checkpoint.string(), key, found == before.end() ? "(absent)" : found->second, value);
  }
}

// Whether the flags that decide how a GPU multiplies matrices are as they were.
bool same_products(const Keys& before, const Keys& now, const Device& device) {
  const auto same = [&](const std::string& key) {
    const auto found = before.find(key);
    return found != before.end() && found->second == now.at(key);
  };
  return device.kind() == "cpu" || (same("tf32") && same("deterministic"));
}

bool will_write(const TrainOptions& options) {
  return !options.out.empty() && !options.dry_run && !options.eval_only && !options.benchmark;
}

// The newest checkpoint of --out. Where there are only damaged ones a fresh run would write over
// what else the directory holds, so that is refused.
fs::path newest_checkpoint(const TrainOptions& options) {
  if (options.out.empty() || !fs::exists(options.out)) return {};
  if (const auto newest = find_latest_checkpoint(options.out)) return *newest;
  for (const auto& entry : fs::directory_iterator(options.out)) {
    if (!will_write(options) || !checkpoint_step(entry.path().filename().string())) continue;
    throw UserError(
        "--out {} holds no valid checkpoint, but {}: move it away to begin anew, or name another "
        "directory",
        options.out, entry.path().filename().string());
  }
  return {};
}

// A run never goes on beside checkpoints that are not its own past: two runs in one directory would
// mix, and --resume auto would pick the wrong one.
fs::path checkpoint_to_resume(const TrainOptions& options) {
  if (options.benchmark) return {};
  if (options.resume == "auto") return newest_checkpoint(options);
  fs::path chosen;
  if (options.resume != "never") {
    chosen = options.resume;
    if (!fs::is_directory(chosen)) {
      throw UserError("--resume is '{}', but must be auto, never or a checkpoint's directory",
                      options.resume);
    }
    verify_checkpoint(chosen);
  }
  const fs::path newest = will_write(options) ? newest_checkpoint(options) : fs::path{};
  if (newest.empty() || (!chosen.empty() && fs::equivalent(chosen, newest))) return chosen;
  throw UserError(
      "--out {} holds {}, which --resume {} would leave behind: continue from it with --resume "
      "auto, or name another --out",
      options.out, newest.filename().string(), options.resume);
}

LoaderOptions loader_options(const TrainOptions& o, const std::string& split) {
  return {.directory = o.data,
          .split = split,
          .seq_len = o.gpt2.seq_len,
          .batch_size = o.batch_size,
          .micro_steps = o.micro_steps(1),
          .seed = o.seed,
          .sampling = parse_sampling(o.sampling),
          .vocab_size = static_cast<int32_t>(o.gpt2.vocab_size)};
}

}  // namespace

Setup::Setup(const TrainOptions& given, Device& device) : options(given) {
  GPT2Config& gpt2 = options.gpt2;
  if (!options.data.empty()) {
    // Shards from elsewhere (llm.c's, say) come without one: then the model's vocabulary counts.
    if (has_tokenizer(options.data) || gpt2.vocab_size == 0)
      tokenizer = load_tokenizer(options.data);
    if (gpt2.vocab_size == 0) gpt2.vocab_size = tokenizer->vocab_size();
    if (!tokenizer && options.sample_interval > 0) {
      throw UserError(
          "--sample-interval: {} holds no tokenizer to write samples with; put one beside the "
          "shards",
          options.data);
    }
    if (tokenizer && tokenizer->vocab_size() > gpt2.vocab_size) {
      throw UserError("--vocab-size {} is too small: the data in {} use {} tokens", gpt2.vocab_size,
                      options.data, tokenizer->vocab_size());
    }
  }
  resume_from = checkpoint_to_resume(options);
  if (options.init != "random") {
    take_sizes(resume_from.empty() ? fs::path(options.init) : resume_from);
  }
  validate(gpt2);
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, int64_t>>{{"n-layer", gpt2.n_layer},
                                                              {"n-head", gpt2.n_head},
                                                              {"n-embd", gpt2.n_embd},
                                                              {"vocab-size", gpt2.vocab_size}}) {
    options.resolve(key, fmt::format("{}", value));
  }
  options.resolve("bias", gpt2.bias ? "1" : "0");
  options.resolve("gelu", fmt::format("\"{}\"", name_of(gpt2.gelu)));
  shape = {.dtype = options.number_type(),
           .batch_size = options.batch_size,
           .seq_len = gpt2.seq_len,
           .micro_steps = options.micro_steps(1),
           .decode_len = options.sample_interval > 0 && !options.benchmark ? gpt2.seq_len : 0,
           .recompute = options.recompute};
  plan = plan_training(gpt2, shape, device.ops(shape.dtype));
}

// Context length and dropout stay the user's to say; all else is what the weights are.
void Setup::take_sizes(const fs::path& weights) {
  if (resume_from.empty()) verify_model(weights);
  const GPT2Config opened = read_model_config(weights);
  GPT2Config& gpt2 = options.gpt2;
  if (tokenizer && tokenizer->vocab_size() > opened.vocab_size) {
    throw UserError("{} has a vocabulary of {}, but the data in {} use {} tokens", weights.string(),
                    opened.vocab_size, options.data, tokenizer->vocab_size());
  }
  if (gpt2.seq_len > opened.seq_len) {
    throw UserError("--seq-len {} is beyond the {} positions of {}: lower it", gpt2.seq_len,
                    opened.seq_len, weights.string());
  }
  gpt2 = {opened.n_layer, opened.n_head, opened.n_embd, opened.vocab_size,
          gpt2.seq_len,   opened.bias,   gpt2.dropout,  opened.gelu};
}

Run::Run(Setup setup, Device& on)
    : setup_(std::move(setup)),
      device(on),
      arena(on, setup_.plan.total()),
      model(setup_.options.gpt2, setup_.shape.dtype, setup_.shape.batch_size, setup_.shape.seq_len,
            on, arena, setup_.shape.recompute),
      optimizer(setup_.options.optimizer, model.weights(), model.gradients(), model.layout(), on,
                arena),
      state(on, arena, setup_.shape.micro_steps),
      loader(loader_options(setup_.options, "train")),
      tokens_mbt_(arena.allocate(
          MemoryCategory::batch, DType::int32,
          {setup_.shape.micro_steps, setup_.shape.batch_size, setup_.shape.seq_len})),
      targets_mbt_(arena.allocate(MemoryCategory::batch, DType::int32, tokens_mbt_.shape)) {
  const TrainOptions& o = setup_.options;
  if (setup_.shape.decode_len > 0) {
    decoder.emplace(o.gpt2, model.weights(), setup_.shape.decode_len, setup_.shape.decode_len, on,
                    arena);
  }
  LATHE_CHECK(arena.used() == setup_.plan, "plan and arena differ:\n{}{}", to_string(setup_.plan),
              to_string(arena.used()));
  if (o.eval_only || (!o.benchmark && o.eval_interval > 0))
    validation.emplace(loader_options(o, "val"));

  if (!setup_.resume_from.empty()) {
    restore();
  } else if (o.init == "random") {
    initialize_parameters(model.layout(), o.seed, optimizer.masters(), device, o.init_std);
  } else {
    read_model(o.init, o.gpt2, model.layout(), optimizer.masters(), device);
  }
  round_weights();
}

void Run::round_weights() {
  if (model.weights().flat.data == optimizer.masters().data) return;
  Cast cast{.destination = model.weights().flat, .source = optimizer.masters()};
  const int64_t updates = state.results().updates;
  if (options().optimizer.stochastic_rounding && updates > 0) {
    step_inputs_.assign(static_cast<size_t>(setup_.shape.micro_steps),
                        {.seed = options().seed, .step = static_cast<uint32_t>(updates)});
    state.begin(model.ops(), step_inputs_);
    cast.rounding = state.inputs(0);
  }
  model.ops().cast(cast, {});
}

int64_t Run::tokens_per_step() const {
  return setup_.shape.batch_size * setup_.shape.seq_len * setup_.shape.micro_steps;
}

void Run::begin(int64_t step) {
  step_inputs_.resize(setup_.shape.micro_steps);  // allocates in the first step only
  for (size_t m = 0; m < step_inputs_.size(); ++m) {
    step_inputs_[m] = {.seed = options().seed,
                       .first_sequence = m * static_cast<uint64_t>(setup_.shape.batch_size),
                       .step = static_cast<uint32_t>(step),
                       .learning_rate = static_cast<float>(learning_rate(options(), step))};
  }
  state.begin(model.ops(), step_inputs_);
}

void Run::upload(const Batch& from, int64_t micro_step) {
  const MicroBatch to = batch(micro_step);
  device.upload(to.tokens_bt, from.inputs.data());
  device.upload(to.targets_bt, from.targets.data());
}

MicroBatch Run::batch(int64_t micro_step) const {
  const Shape bt{setup_.shape.batch_size, setup_.shape.seq_len};
  return {tokens_mbt_.rows(micro_step, 1).reshaped(bt),
          targets_mbt_.rows(micro_step, 1).reshaped(bt), state.inputs(micro_step)};
}

TrainerState Run::trainer_state(int64_t step) const {
  const TrainOptions& o = options();
  TrainerState s;
  s.step = step;
  s.tokens = step * tokens_per_step();
  s.skipped_steps = skipped_steps;
  s.seed = o.seed;
  s.loader = {.sampling = o.sampling, .step = loader.position().step};
  s.layout = {.threads = o.threads,
              .cpu = device.name(),
              .dtype = o.dtype,
              .device = std::string(device.kind())};
  s.matmul_plans = device.plans();
  s.config = keys_of(o.resolved);
  return s;
}

void Run::save(int64_t step) {
  CheckpointWriter writer(options().out, step);
  const auto add = [&](const WrittenFiles& files) {
    for (const auto& [name, digest] : files) writer.add(name, digest);
  };
  add(write_model(writer.path(), options().gpt2, model.layout(), optimizer.masters(), device));
  add(write_optimizer(writer.path(), model.layout(), optimizer, device));
  if (setup_.tokenizer) writer.write("tokenizer.json", setup_.tokenizer->to_json());
  writer.write("trainer.json", to_json(trainer_state(step)));
  writer.commit();
  prune_checkpoints(options().out, static_cast<int>(options().keep));
}

void Run::restore() {
  const fs::path& from = setup_.resume_from;
  const TrainerState s = read_trainer_state(from / "trainer.json");
  const Keys now = keys_of(options().resolved);
  refuse_changes(s.config, now, from);
  if (s.layout.cpu != device.name()) {
    std::cerr << "train: " << from.string() << " was made on '" << s.layout.cpu << "', this is '"
              << device.name() << "': the run goes on, but not bit for bit\n";
  } else if (!same_products(s.config, now, device)) {
    std::cerr << "train: " << from.string()
              << " was made with other --tf32 or --deterministic: the run goes on, but not bit for "
                 "bit\n";
  } else {
    device.load_plans(s.matmul_plans);
  }
  read_model(from, options().gpt2, model.layout(), optimizer.masters(), device);
  read_optimizer(from, model.layout(), optimizer, device);
  first_step = s.step;
  skipped_steps = s.skipped_steps;
  state.set_results({.updates = s.step - s.skipped_steps});
  loader.restore({.step = s.loader.step, .micro_step = 0});
}

}  // namespace lathe
