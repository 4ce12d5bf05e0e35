#include "src/run.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "kernels/device/standard_streams.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/io/toml.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"
#include "src/parallel/mpi_file.h"
#include "src/report.h"
#include "src/resume.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

LoaderOptions loader_options(const TrainOptions& o, const std::string& split,
                             const Communicator& communicator, const OpenShardFile& open) {
  return {.directory = o.data,
          .split = split,
          .seq_len = o.gpt2.seq_len,
          .batch_size = o.batch_size,
          .micro_steps = o.micro_steps(communicator.size()),
          .rank = communicator.rank(),
          .world_size = communicator.size(),
          .seed = o.seed,
          .sampling = parse_sampling(o.sampling),
          .vocab_size = static_cast<int32_t>(o.gpt2.vocab_size),
          .open = open};
}

// Shares of a bucket are whole blocks of the norm; with fewer than this many a share's last block,
// which is padding for the most part, would weigh too much.
constexpr int64_t kLeastBlocksOfShare = 16;

Sharding sharding_of(const TrainOptions& o, int64_t ranks) {
  const int64_t wanted = o.bucket_mb * (int64_t{1} << 20) / int64_t{sizeof(float)};
  const int64_t least = ranks > 1 && wanted > 0 ? ranks * kLeastBlocksOfShare * kNormBlock : 0;
  return {.ranks = ranks, .bucket_elements = std::max(wanted, least)};
}

// Before anything is said of what the directory lacks.
void require_readable_data(const std::string& data) {
  if (data.empty()) return;
  std::error_code error;
  const fs::directory_iterator readable(data, error);
  if (!error) return;
  throw UserError(
      "cannot read the data directory {}: {}; --data names one that build/prepare wrote", data,
      error.message());
}

// Nobody wants to know the loss of random weights unless they say so: a mistyped --out has none.
void require_weights_to_evaluate(const TrainOptions& o, const fs::path& resume_from) {
  const bool asked = o.init != "random" || o.source_of("init") == FlagSource::command_line;
  if (!o.eval_only || !resume_from.empty() || asked) return;
  const std::string found = o.out.empty() ? "" : ", for --out " + o.out + " holds no checkpoint";
  throw UserError(
      "--eval-only has no weights to evaluate{}: name a run by --out, a checkpoint by --resume "
      "or a model by --init, which may be random",
      o.resume == "never" ? "" : found);
}

// Sizes are those of the weights. A flag that says otherwise is an error, unless it stands in a
// file and --init on the command line.
void refuse_other_sizes(const TrainOptions& o, const GPT2Config& asked, const GPT2Config& opened,
                        const fs::path& weights) {
  const auto refuse = [&](const char* flag, const auto& wanted, const auto& found) {
    const FlagSource source = o.source_of(flag);
    if (wanted == found || source == FlagSource::preset || source < o.source_of("init")) return;
    throw UserError("--{} is {}, but the model in {} has {}: take the flag away, or --init", flag,
                    wanted, weights.string(), found);
  };
  refuse("n-layer", asked.n_layer, opened.n_layer);
  refuse("n-head", asked.n_head, opened.n_head);
  refuse("n-embd", asked.n_embd, opened.n_embd);
  if (asked.vocab_size > 0) refuse("vocab-size", asked.vocab_size, opened.vocab_size);
  refuse("bias", asked.bias, opened.bias);
  refuse("gelu", name_of(asked.gelu), name_of(opened.gelu));
}

}  // namespace

std::unique_ptr<Device> make_rank_device(const TrainOptions& options, const Place& place) {
  CudaDeviceOptions cuda = options.cuda;
  // Of several ranks on this host, or of nobody knows how many.
  if (const int count = place.local_size != 1 ? cuda_device_count() : 0; count > 0)
    cuda.index = place.local_rank % count;
  int threads = options.threads;
  if (threads == 0 && place.local_size > 1 && std::getenv("OMP_NUM_THREADS") == nullptr) {
    // A rank that its launcher has bound to some cores may use them all.
    cpu_set_t cores;
    CPU_ZERO(&cores);
    sched_getaffinity(0, sizeof(cores), &cores);
    const int mine = CPU_COUNT(&cores);
    const bool bound = mine < static_cast<int>(std::thread::hardware_concurrency());
    threads = std::max(1, bound ? mine : mine / place.local_size);
  }
  return make_device(options.device, threads, cuda);
}

CommunicatorOptions communicator_options(const TrainOptions& options) {
  return {.kind = options.comm,
          .timeout_seconds = static_cast<double>(options.comm_timeout),
          .rendezvous = options.rendezvous};
}

Setup::Setup(const TrainOptions& given, Device& device, const World& world,
             Communicator& communicator)
    : options(given) {
  require_readable_data(options.data);
  if (options.reader == "mpi-io") open = mpi_shard_files(world);
  data_fingerprint = lathe::data_fingerprint(options.data);
  if (communicator.size() > 1) require_same_world(communicator, options.resolved, data_fingerprint);
  GPT2Config& gpt2 = options.gpt2;
  if (!options.data.empty()) {
    if (gpt2.vocab_size == 0 && !has_tokenizer(options.data)) {
      throw UserError(
          "--vocab-size is missing: {} holds no tokenizer that tells it; give it, or put a "
          "tokenizer.json, encoder.json + vocab.bpe or vocab.json + merges.txt beside the shards",
          options.data);
    }
    // Shards from elsewhere (llm.c's, say) come without one: then the model's vocabulary counts.
    if (has_tokenizer(options.data) || gpt2.vocab_size == 0)
      tokenizer = load_tokenizer(options.data);
    if (gpt2.vocab_size == 0) gpt2.vocab_size = tokenizer->vocab_size();
    if (tokenizer && tokenizer->vocab_size() > gpt2.vocab_size) {
      throw UserError("--vocab-size {} is too small: the data in {} use {} tokens", gpt2.vocab_size,
                      options.data, tokenizer->vocab_size());
    }
  }
  // One rank looks through the disk and reads what a checkpoint's manifest vouches for.
  std::string chosen;
  if (communicator.rank() == 0) {
    if (options.writes()) {
      lock = std::make_unique<DirectoryLock>(options.out);
      remove_leftovers(options.out);
    }
    chosen = checkpoint_to_resume(options).string();
  }
  resume_from = communicator.exchange_text(chosen).front();
  require_weights_to_evaluate(options, resume_from);
  const fs::path weights = resume_from.empty() ? fs::path(options.init) : resume_from;
  if (options.init != "random") take_sizes(weights, given.gpt2);
  if (weights != "random") take_tokenizer(weights);
  if (!tokenizer && options.sample_interval > 0) {
    throw UserError(
        "--sample-interval: {} holds no tokenizer to write samples with; put one beside the shards",
        options.data);
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
  options.resolve("gelu", toml_string(name_of(gpt2.gelu)));
  shape = {.dtype = options.number_type(),
           .batch_size = options.batch_size,
           .seq_len = gpt2.seq_len,
           .micro_steps = options.micro_steps(communicator.size()),
           .decode_len = options.sample_interval > 0 && !options.benchmark ? gpt2.seq_len : 0,
           .recompute = options.recompute,
           .sharding = sharding_of(options, communicator.size()),
           .rank = communicator.rank(),
           .sharded = options.zero_stage >= 1 && communicator.size() > 1,
           .reduce_bf16 = options.reduce_dtype == "bf16" && communicator.size() > 1};
  plan_memory(device);
  if (communicator.size() > 1 && options.writes()) require_one_out(communicator, options.out);
}

// A run that goes on keeps its number of logits at once, which bits depend on.
void Setup::plan_memory(Device& device) {
  shape.logits_at_once = options.chunk_logits;
  if (shape.logits_at_once == 0 && !resume_from.empty()) {
    const TrainerState before = read_trainer_state(resume_from / "trainer.json");
    const auto found = before.config.find("chunk-logits");
    if (found != before.config.end() && before.layout.cpu == device.name())
      std::from_chars(found->second.data(), found->second.data() + found->second.size(),
                      shape.logits_at_once);  // stays 0 if that is no number
  }
  plan = plan_training_within(device.memory_bytes(), options.gpt2, shape, device.ops(shape.dtype));
  options.resolve("chunk-logits", fmt::format("{}", shape.logits_at_once));
}

// Token ids must mean the same to the weights and to the data.
void Setup::take_tokenizer(const fs::path& weights) {
  if (!has_tokenizer(weights)) return;
  std::unique_ptr<Tokenizer> known = load_tokenizer(weights);
  // Shards from elsewhere have none: the one that the weights came with goes on with them.
  if (!tokenizer) {
    if (known->vocab_size() <= options.gpt2.vocab_size) tokenizer = std::move(known);
    return;
  }
  if (same_tokens(*known, *tokenizer)) return;
  throw UserError(
      "{} was made with another tokenizer than the data in {}: the same ids mean other texts; "
      "prepare the data with the tokenizer of {}",
      weights.string(), options.data, weights.string());
}

// Context length and dropout stay the user's to say; all else is what the weights are.
void Setup::take_sizes(const fs::path& weights, const GPT2Config& asked) {
  if (resume_from.empty()) verify_model(weights);
  const GPT2Config opened = read_model_config(weights);
  GPT2Config& gpt2 = options.gpt2;
  refuse_other_sizes(options, asked, opened, weights);
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

Run::Run(Setup setup, Device& on, Communicator& ranks)
    : setup_(std::move(setup)),
      device(on),
      communicator(ranks),
      arena(on, setup_.plan.total()),
      model(setup_.options.gpt2, setup_.shape.dtype, setup_.shape.batch_size, setup_.shape.seq_len,
            on, arena, setup_.shape.recompute, setup_.shape.sharding, setup_.shape.logits_at_once),
      optimizer(setup_.options.optimizer, model.weights(), model.gradients(), model.layout(), on,
                arena, {setup_.shape.rank, setup_.shape.sharded}),
      state(on, arena, setup_.shape.micro_steps),
      parallel(ranks, on, model, optimizer, state, setup_.shape.reduce_bf16, arena,
               StepClock::marks(setup_.shape.micro_steps)),
      loader(loader_options(setup_.options, "train", ranks, setup_.open)),
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
    validation.emplace(loader_options(o, "val", communicator, setup_.open));

  write_tuning_log();  // empty as yet: a path that cannot be written is told now
  if (!setup_.resume_from.empty()) {
    restore();
  } else if (o.init == "random") {
    set_masters([&](const Tensor& all) {
      initialize_parameters(model.layout(), o.seed, all, device, o.init_std);
    });
  } else {
    set_masters(
        [&](const Tensor& all) { read_model(o.init, o.gpt2, model.layout(), all, device); });
  }
  round_weights();
  parallel.gather_weights();
}

// Rank 0 fills all masters, the others get them from it. Where a rank keeps a share they pass
// through the gradients, of which there are none yet.
template <typename Fill>
void Run::set_masters(const Fill& fill) {
  const Tensor all = optimizer.sharded() ? model.gradients().flat : optimizer.masters();
  if (rank() == 0) fill(all);
  if (ranks() > 1) {
    communicator.after_device();
    communicator.wait(communicator.broadcast(all, 0, "initial weights"));
    require_same(communicator, "the initial weights", digest_of(device, all),
                 "a broadcast has failed; run build/commtest on these hosts");
  }
  if (!optimizer.sharded()) return;
  for (const ShardPart& part : optimizer.shard()) {
    device.copy(optimizer.masters().rows(part.local, part.elements),
                all.rows(part.begin, part.elements));
  }
  device.zero(all);
}

// The other way.
Tensor Run::gathered_masters() {
  if (!optimizer.sharded()) return optimizer.masters();
  const Tensor all = model.gradients().flat;
  const std::vector<Bucket>& buckets = model.layout().buckets;
  communicator.after_device();
  for (size_t b = 0; b < buckets.size(); ++b) {
    const ShardPart& part = optimizer.shard()[b];
    communicator.all_gather(all.rows(buckets[b].begin, buckets[b].elements()),
                            optimizer.masters().rows(part.local, part.elements),
                            "masters for a checkpoint");
  }
  communicator.wait(communicator.last());
  return all;
}

void Run::round_weights() {
  const Tensor& weights = optimizer.weights();
  if (weights.data == optimizer.masters().data) return;
  const int64_t updates = state.results().updates;
  const bool at_random = options().optimizer.stochastic_rounding && updates > 0;
  if (at_random) {
    step_inputs_.assign(static_cast<size_t>(setup_.shape.micro_steps),
                        {.seed = options().seed, .step = static_cast<uint32_t>(updates)});
    state.begin(model.ops(), step_inputs_);
  }
  for (const ShardPart& part : optimizer.shard()) {
    model.ops().cast({.destination = weights.rows(part.local, part.elements),
                      .source = optimizer.masters().rows(part.local, part.elements),
                      .rounding = at_random ? state.inputs(0) : nullptr,
                      .first_element = part.begin},
                     {});
  }
}

void Run::compare_replicas() {
  if (ranks() == 1) return;
  std::string digest = digest_of(device, model.weights().flat);
  // Where each rank has all masters, they are the weights, and bf16 shows half of their bits.
  if (!optimizer.sharded() && optimizer.masters().data != model.weights().flat.data)
    digest += digest_of(device, optimizer.masters());
  require_same(communicator, "the weights", digest,
               "a device or the network has computed something wrong; continue from the last "
               "checkpoint without that host");
}

// Timing may choose otherwise on each rank, and a checkpoint keeps the plans of one: from here on,
// and after a resume, all ranks have these.
void Run::share_plans() {
  const std::string mine = device.plans();
  const std::string shared = communicator.exchange_text(rank() == 0 ? mine : "").front();
  const std::vector<std::string> differ = communicator.exchange_text(shared == mine ? "" : "x");
  if (std::ranges::all_of(differ, &std::string::empty)) return;
  if (shared != mine) device.load_plans(shared);
  // On every rank: a collective of a recording must not meet one that is enqueued.
  device.forget_recordings();
}

void Run::settle_products() {
  share_plans();
  write_tuning_log();
}

void Run::write_tuning_log() const {
  if (options().tuning_log.empty() || rank() != 0) return;
  constexpr std::string_view kHead =
      "shape\tcandidate\talgorithm\ttile\tstages\tsplits\tepilogue\tmilliseconds\tchosen\n";
  write_file(options().tuning_log, std::string(kHead) + device.tuning_log());
}

int64_t Run::tokens_per_step() const {
  return setup_.shape.batch_size * setup_.shape.seq_len * setup_.shape.micro_steps * ranks();
}

void Run::begin(int64_t step, const StepVote& vote) {
  step_inputs_.resize(setup_.shape.micro_steps);  // allocates in the first step only
  for (size_t m = 0; m < step_inputs_.size(); ++m) {
    step_inputs_[m] = {.seed = options().seed,
                       .first_sequence = static_cast<uint64_t>(
                           (rank() * setup_.shape.micro_steps + static_cast<int64_t>(m)) *
                           setup_.shape.batch_size),
                       .step = static_cast<uint32_t>(step),
                       .learning_rate = static_cast<float>(learning_rate(options(), step)),
                       .stop_vote = vote.stop,
                       .first_loss = m == 0 ? vote.loss : 0};
  }
  state.begin(model.ops(), step_inputs_);
}

void Run::upload(const Batch& from, int64_t micro_step) {
  const MicroBatch to = batch(micro_step);
  device.upload(to.tokens_bt, from.inputs.data());
  device.upload(to.targets_bt, from.targets.data());
}

void Run::upload_blanks() {
  const auto tokens = static_cast<size_t>(setup_.shape.batch_size * setup_.shape.seq_len);
  Batch blank;
  blank.inputs.assign(tokens, 0);
  blank.targets.assign(tokens, kIgnoredTarget);
  for (int64_t m = 0; m < micro_steps(); ++m) upload(blank, m);
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
  s.loader = {.sampling = o.sampling, .step = step};
  s.layout = {.world_size = ranks(),
              .zero_stage = optimizer.sharded() ? 1 : 0,
              .threads = o.threads,
              .cpu = device.name(),
              .dtype = o.dtype,
              .device = std::string(device.kind())};
  s.matmul_plans = device.plans();
  s.data_fingerprint = setup_.data_fingerprint;
  s.config = keys_of(o.resolved);
  return s;
}

// Rank 0 makes the directory, everybody writes a file of moments into it, rank 0 also the weights;
// when it knows the digests of all files the checkpoint appears under its name. What fails on one
// rank, as on a disk that is full, fails on all, and rank 0 removes what is half done before it
// ends.
void Run::save(int64_t step, bool prune) {
  share_plans();  // what was met since the first step, too
  const Tensor masters = gathered_masters();
  std::optional<CheckpointWriter> writer;
  const auto together = [&](const std::function<void()>& part) {
    do_together(communicator, part, [&] { writer.reset(); });
  };
  together([&] {
    if (rank() == 0) writer.emplace(options().out, step);
  });
  const fs::path directory = checkpoint_partial_path(options().out, step);
  const Tokenizer* tokenizer = setup_.tokenizer.get();
  const std::optional<int32_t> end_of_text =
      tokenizer ? tokenizer->end_of_text() : std::optional<int32_t>();
  std::string lines;
  together([&] {
    WrittenFiles written = write_optimizer(directory, model.layout(), optimizer, device, rank());
    if (writer) {
      written.merge(
          write_model(directory, options().gpt2, model.layout(), masters, device, end_of_text));
    }
    for (const auto& [name, digest] : written)
      lines += fmt::format("{} {} {}\n", name, digest.size, digest.xxh128);
  });
  const std::vector<std::string> all = communicator.exchange_text(lines);
  // Nobody ends, or saves the next, before this one is there.
  together([&] {
    if (!writer) return;
    for (const std::string& text : all) {
      std::istringstream words(text);
      FileDigest digest;
      for (std::string name; words >> name >> digest.size >> digest.xxh128;)
        writer->add(name, digest);
    }
    if (tokenizer) {
      std::optional<std::string_view> end;
      if (end_of_text) end = tokenizer->token(*end_of_text);
      writer->write("tokenizer.json", tokenizer->to_json());
      writer->write("tokenizer_config.json", tokenizer_config_json(options().gpt2, end));
    }
    writer->write("trainer.json", to_json(trainer_state(step)));
    writer->commit();
    if (prune) prune_checkpoints(options().out, options().keep, step);
  });
}

// Why the continuation of `s` cannot have the same bits; "" where it has them.
void Run::restore() {
  const fs::path& from = setup_.resume_from;
  const TrainerState s = read_trainer_state(from / "trainer.json");
  const ConfigKeys now = keys_of(options().resolved);
  const Manifest manifest = read_manifest(from);
  refuse_changes(s.config, now, from);
  refuse_unfit(s, manifest, options(), from);
  if (s.step > 0 && s.tokens != s.step * tokens_per_step()) {
    throw UserError(
        "{} was made with {} tokens a step, now they are {} (--batch-size {} x --seq-len {} x {} "
        "rank{} x {} micro-step{}): give --total-batch-size {}, or begin anew with --resume never "
        "and "
        "another --out",
        from.string(), s.tokens / s.step, tokens_per_step(), setup_.shape.batch_size,
        setup_.shape.seq_len, ranks(), ranks() == 1 ? "" : "s", micro_steps(),
        micro_steps() == 1 ? "" : "s", s.tokens / s.step);
  }
  const std::string difference = difference_to(s, now, setup_.data_fingerprint, ranks(), device);
  if (!difference.empty() && rank() == 0) {
    say(fmt::format("train: {} {}: the run goes on, but not bit for bit", from.string(),
                    difference));
  }
  if (same_products(s.config, now, device) && s.layout.cpu == device.name())
    device.load_plans(s.matmul_plans);
  set_masters(
      [&](const Tensor& all) { read_model(from, options().gpt2, model.layout(), all, device); });
  read_optimizer(from, optimizer_ranks(from, manifest), model.layout(), optimizer, device);
  first_step = s.step;
  skipped_steps = s.skipped_steps;
  state.set_results({.updates = s.step - s.skipped_steps});
  loader.restore({.step = s.loader.step, .micro_step = 0});
}

}  // namespace lathe
