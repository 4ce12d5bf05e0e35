#include "src/train/setup.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <thread>

#include "src/io/checkpoint.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"
#include "src/train/mpi_file.h"
#include "src/train/resume.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

// A rank's share of a bucket is a multiple of kParameterAlignment. With fewer multiples than this a
// bucket would be padded too much.
constexpr int64_t kLeastShare = 16 * kParameterAlignment;

int64_t bucket_elements(const TrainOptions& o, int64_t ranks) {
  const int64_t wanted = o.bucket_mb * (int64_t{1} << 20) / int64_t{sizeof(float)};
  const int64_t least = ranks > 1 && wanted > 0 ? ranks * kLeastShare : 0;
  return std::max(wanted, least);
}

// Checks this first, so that an unreadable directory is not reported as an incomplete one.
void require_readable_data(const std::string& data) {
  if (data.empty()) return;
  std::error_code error;
  const fs::directory_iterator readable(data, error);
  if (!error) return;
  throw UserError(
      "cannot read the data directory {}: {}; --data must name one that build/prepare wrote", data,
      error.message());
}

// Evaluates random weights only if the user asks for them: more likely --out is mistyped.
void require_weights_to_evaluate(const TrainOptions& o, const fs::path& resume_from) {
  const bool asked = o.init != "random" || o.source_of("init") == FlagSource::command_line;
  if (!o.eval_only || !resume_from.empty() || asked) return;
  const std::string found =
      o.out.empty() ? "" : ", because --out " + o.out + " holds no checkpoint";
  throw UserError(
      "--eval-only has no weights to evaluate{}: name a run with --out, a checkpoint with --resume "
      "or a model with --init, which may be random",
      o.resume == "never" ? "" : found);
}

// The weights determine the sizes. A flag that contradicts them is an error, unless the flag comes
// from a file and --init from the command line.
void refuse_other_sizes(const TrainOptions& o, const ModelConfig& asked, const ModelConfig& opened,
                        const fs::path& weights) {
  const auto refuse = [&](const char* flag, const auto& wanted, const auto& found) {
    const FlagSource source = o.source_of(flag);
    if (wanted == found || source == FlagSource::preset || source < o.source_of("init")) return;
    throw UserError("--{} is {}, but the model in {} has {}: remove the flag, or --init", flag,
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

namespace {

// Of the host, for this rank; 0: OpenMP's choice.
int rank_threads(const TrainOptions& options, const Place& place) {
  if (options.threads != 0 || place.local_size <= 1 || std::getenv("OMP_NUM_THREADS") != nullptr)
    return options.threads;
  // If the launcher bound this rank to some cores, it may use all of them.
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof(cores), &cores);
  const int mine = CPU_COUNT(&cores);
  const bool bound = mine < static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, bound ? mine : mine / place.local_size);
}

}  // namespace

std::unique_ptr<Device> make_rank_device(const TrainOptions& options, const Place& place) {
  CudaDeviceOptions cuda = options.cuda;
  // Several ranks share this host, or their number is unknown.
  if (const int count = place.local_size != 1 ? cuda_device_count() : 0; count > 0)
    cuda.index = place.local_rank % count;
  return make_device(options.device, rank_threads(options, place), cuda);
}

DataParallelOptions parallel_options(const TrainOptions& o, int64_t ranks) {
  return {.bucket_elements = bucket_elements(o, ranks),
          .zero_stage = o.zero_stage,
          .zero_slots = o.zero_slots,
          .reduce_each_micro_step = o.reduces_each_micro_step(),
          .reduce_bf16 = o.reduce_dtype == DType::bf16,
          .weights = o.offload.weights};
}

CommunicatorOptions communicator_options(const TrainOptions& options) {
  return {.kind = options.comm,
          .timeout_seconds = static_cast<double>(options.comm_timeout),
          .rendezvous = options.rendezvous};
}

Setup::Setup(const TrainOptions& given, Device& device, const World& world, const Mesh& mesh)
    : options(given) {
  require_readable_data(options.data);
  if (options.reader == Reader::mpi_io) open = mpi_shard_files(world);
  data_fingerprint = lathe::data_fingerprint(options.data);
  if (mesh.ranks() > 1) require_same_world(mesh.world(), to_toml(options), data_fingerprint);
  if (!options.data.empty()) take_vocabulary();
  // Only one rank searches the disk and verifies checkpoints.
  std::string chosen;
  if (mesh.leads()) {
    if (options.writes()) {
      lock = std::make_unique<DirectoryLock>(options.out);
      remove_leftovers(options.out);
    }
    chosen = checkpoint_to_resume(options).string();
  }
  resume_from = mesh.world().exchange_text(chosen).front();
  require_weights_to_evaluate(options, resume_from);
  const fs::path weights = resume_from.empty() ? fs::path(options.init) : resume_from;
  if (options.init != "random") take_sizes(weights, given.model_config);
  if (weights != "random") take_tokenizer(weights);
  if (!tokenizer && options.sample_interval > 0) {
    throw UserError(
        "--sample-interval: {} holds no tokenizer, which samples need; put one beside the shards",
        options.data);
  }
  validate(options.model_config);
  shape = {.dtype = options.dtype,
           .batch_size = options.batch_size,
           .seq_len = options.model_config.seq_len,
           .micro_steps = options.micro_steps(mesh.dp().size()),
           .decode_len =
               options.sample_interval > 0 && !options.benchmark ? options.model_config.seq_len : 0,
           .recompute = options.recompute,
           .parallel = parallel_options(options, mesh.dp().size()),
           .offload = options.offload};
  shape.offload.host = [threads = rank_threads(options, world.place())] {
    return make_cpu_device(threads);
  };
  plan_memory(device, mesh);
  if (mesh.ranks() > 1 && options.writes()) require_one_out(mesh.world(), options.out);
}

// Uses the vocabulary size of --vocab-size, or else of the data.
void Setup::take_vocabulary() {
  ModelConfig& config = options.model_config;
  if (config.vocab_size == 0 && !has_tokenizer(options.data)) {
    throw UserError(
        "--vocab-size is missing, and {} holds no tokenizer to take it from: give it, or put a "
        "tokenizer.json, encoder.json + vocab.bpe or vocab.json + merges.txt beside the shards",
        options.data);
  }
  // Shards of other programs, such as llm.c, have no tokenizer; --vocab-size then counts.
  if (has_tokenizer(options.data) || config.vocab_size == 0)
    tokenizer = load_tokenizer(options.data);
  if (config.vocab_size == 0) config.vocab_size = tokenizer->vocab_size();
  if (tokenizer && tokenizer->vocab_size() > config.vocab_size) {
    throw UserError("--vocab-size {} is too small: the data in {} use {} tokens", config.vocab_size,
                    options.data, tokenizer->vocab_size());
  }
}

// A resumed run keeps its number of logits at once, because bits depend on it.
void Setup::plan_memory(Device& device, const Mesh& mesh) {
  shape.logits_at_once = options.chunk_logits;
  if (shape.logits_at_once == 0 && !resume_from.empty()) {
    const TrainerState before = read_trainer_state(resume_from / "trainer.json");
    const auto found = before.config.find("chunk-logits");
    if (found != before.config.end() && before.layout.cpu == device.name())
      std::from_chars(found->second.data(), found->second.data() + found->second.size(),
                      shape.logits_at_once);  // stays 0 if it is not a number
  }
  plan = plan_training_within(device.memory_bytes(), options.model_config, options.optimizer, shape,
                              device, mesh);
  options.chunk_logits = shape.logits_at_once;
}

// Token ids must mean the same for the weights and for the data.
void Setup::take_tokenizer(const fs::path& weights) {
  if (!has_tokenizer(weights)) return;
  std::unique_ptr<Tokenizer> known = load_tokenizer(weights);
  // Shards of other programs have no tokenizer: use that of the weights.
  if (!tokenizer) {
    if (known->vocab_size() <= options.model_config.vocab_size) tokenizer = std::move(known);
    return;
  }
  if (same_tokens(*known, *tokenizer)) return;
  throw UserError(
      "{} was made with a different tokenizer than the data in {}: the same ids mean different "
      "text; prepare the data with the tokenizer of {}",
      weights.string(), options.data, weights.string());
}

// The user still chooses context length and dropout; the weights determine everything else.
void Setup::take_sizes(const fs::path& weights, const ModelConfig& asked) {
  if (resume_from.empty()) verify_model(weights);
  const ModelConfig opened = read_model_config(weights);
  ModelConfig& config = options.model_config;
  refuse_other_sizes(options, asked, opened, weights);
  if (tokenizer && tokenizer->vocab_size() > opened.vocab_size) {
    throw UserError("{} has a vocabulary of {}, but the data in {} use {} tokens", weights.string(),
                    opened.vocab_size, options.data, tokenizer->vocab_size());
  }
  if (config.seq_len > opened.seq_len) {
    throw UserError("--seq-len {} is beyond the {} positions of {}: lower it", config.seq_len,
                    opened.seq_len, weights.string());
  }
  config = {opened.n_layer, opened.n_head, opened.n_embd,  opened.vocab_size,
            config.seq_len, opened.bias,   config.dropout, opened.gelu};
}

}  // namespace lathe
