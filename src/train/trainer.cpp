#include "src/train/trainer.h"

#include <exception>

#include "kernels/imagined_device.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"

namespace lathe {

namespace {

std::vector<Activations> allocate_activations(const ModelConfig& config, const StepShape& s,
                                              int64_t count, Arena& arena) {
  std::vector<Activations> sets;
  for (int64_t i = 0; i < count; ++i)
    sets.emplace_back(config, s.dtype, s.batch_size, s.seq_len, s.recompute, arena,
                      s.offload.inputs);
  return sets;
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const OptimizerConfig& optimizer_config,
                 const StepShape& s, Device& on, const Mesh& ranks, Arena& arena)
    : shape(s),
      device(on),
      mesh(ranks),
      state(on, arena, s.micro_steps),
      parameters(make_parameter_store(config, s.parallel, ranks.dp(), on, on.ops(s.dtype),
                                      state.loss_and_votes(), arena)),
      schedule(one_forward_one_backward(/*stage=*/0, /*stages=*/1, s.micro_steps)),
      in_flight(allocate_activations(config, s, most_in_flight(schedule), arena)),
      model(config, *parameters, in_flight.front(), on, arena, s.logits_at_once),
      optimizer(optimizer_config, *parameters, on, arena, s.offload),
      clocks{StepClock(on, s.micro_steps), StepClock(on, s.micro_steps)},
      tokens_mbt_(arena.allocate(MemoryCategory::batch, DType::int32,
                                 {s.micro_steps, s.batch_size, s.seq_len})),
      targets_mbt_(arena.allocate(MemoryCategory::batch, DType::int32, tokens_mbt_.shape)),
      step_inputs_(static_cast<size_t>(s.micro_steps)) {
  if (s.decode_len > 0) decoder.emplace(config, *parameters, s.decode_len, s.decode_len, on, arena);
}

int64_t Trainer::tokens_per_step() const {
  return shape.batch_size * shape.seq_len * shape.micro_steps * mesh.dp().size();
}

// Numbers the sequences of a step, so that results do not depend on which rank and micro-step has
// one.
void Trainer::begin(const StepStart& start) {
  for (size_t m = 0; m < step_inputs_.size(); ++m) {
    const int64_t before = mesh.dp().rank() * shape.micro_steps + static_cast<int64_t>(m);
    step_inputs_[m] = {.seed = start.seed,
                       .first_sequence = static_cast<uint64_t>(before * shape.batch_size),
                       .step = static_cast<uint32_t>(start.step),
                       .learning_rate = static_cast<float>(start.learning_rate),
                       .stop_vote = start.stop_vote,
                       .first_loss = m == 0 ? start.first_loss : 0};
  }
  state.begin(ops(), step_inputs_);
}

void Trainer::upload(int64_t micro_step, const int32_t* tokens, const int32_t* targets) {
  const MicroBatch to = batch(micro_step);
  device.upload(to.tokens_bt, tokens);
  device.upload(to.targets_bt, targets);
}

MicroBatch Trainer::batch(int64_t micro_step) const {
  const Shape bt{shape.batch_size, shape.seq_len};
  const auto set = static_cast<size_t>(micro_step) % in_flight.size();
  return {tokens_mbt_.rows(micro_step, 1).reshaped(bt),
          targets_mbt_.rows(micro_step, 1).reshaped(bt), state.inputs(micro_step), &in_flight[set]};
}

StepResults Trainer::collect_results() {
  const StepResults results = state.collect_results();
  optimizer.rethrow();
  return results;
}

void Trainer::use(const Ops& ops) {
  model.use(ops);
  parameters->use(ops);
}

void Trainer::set_masters(const Fill& fill) {
  const std::vector<ShardPart>& share = parameters->share();
  do_together(
      mesh.world(),
      [&] {
        optimizer.create_file();
        for (const ShardPart& part : share) {
          optimizer.write(OptimizerState::masters, part.local, part.elements,
                          [&](int64_t done, const Tensor& to) { fill(part.begin + done, to); });
        }
      },
      [] {});
  std::string digests;
  for (size_t b = 0; mesh.ranks() > 1 && b < share.size(); ++b) {
    if (!has_all(b)) continue;
    LATHE_CHECK(!optimizer.file(), "a file of each rank would hold the states of all");
    const Tensor masters = optimizer.masters(b);
    parameters->complete(b, masters, "initial weights");
    digests += digest_of(device, masters);
  }
  require_same(mesh.world(), "the initial weights", digests,
               "a collective has failed; run build/commtest on these hosts");
}

bool Trainer::has_all(size_t bucket) const {
  return parameters->owned()[bucket].part.elements ==
         parameters->layout().buckets[bucket].elements();
}

// One rank looks at the whole file; every rank reads its share.
void Trainer::read_masters(const std::filesystem::path& directory) {
  std::optional<ModelReader> reader;
  do_together(
      mesh.world(),
      [&] {
        reader.emplace(directory, model.config(), parameters->layout());
        if (mesh.leads()) reader->require_fit();
      },
      [] {});
  require_same(mesh.world(), "the weights in " + directory.string(), reader->fingerprint(),
               "give all ranks the same files");
  set_masters([&](int64_t begin, const Tensor& to) { reader->read(begin, to, device); });
}

Tensor Trainer::gathered_masters(size_t bucket) {
  std::exception_ptr failure;
  Tensor mine = parameters->owned()[bucket].gradients;  // of the same size
  try {
    mine = optimizer.masters(bucket);
  } catch (...) {  // the other ranks wait for this one
    failure = std::current_exception();
  }
  const Tensor all = parameters->gather(bucket, mine, "masters for a checkpoint");
  if (failure) std::rethrow_exception(failure);
  return all;
}

void Trainer::round_weights(uint64_t seed) {
  if (!optimizer.weights_are_masters()) {
    const int64_t updates = state.results().updates;
    const bool at_random = optimizer.config().stochastic_rounding && updates > 0;
    if (at_random) begin({.seed = seed, .step = updates});
    for (const OwnedPart& owned : parameters->owned()) {
      const ShardPart& part = owned.part;
      optimizer.read(OptimizerState::masters, part.local, part.elements,
                     [&](int64_t done, const Tensor& masters) {
                       ops().run(Cast{.destination = owned.weights.rows(done, masters.elements()),
                                      .source = masters,
                                      .rounding = at_random ? state.inputs(0) : nullptr,
                                      .first_element = part.number + done},
                                 {});
                     });
    }
    device.synchronize();  // before a file's memory is used for others
  }
  parameters->gather_weights();
}

// Every rank gathers all weights, whatever it keeps. Masters that every rank has are compared too:
// bf16 weights show only half of their bits.
void Trainer::compare_replicas() {
  if (mesh.dp().size() == 1) return;
  parameters->gather_weights();
  const std::vector<Bucket>& buckets = parameters->layout().buckets;
  std::string digests;
  for (size_t b = 0; b < buckets.size(); ++b) {
    digests += digest_of(device, parameters->weights_of(b));
    if (!optimizer.weights_are_masters() && has_all(b))
      digests += digest_of(device, optimizer.masters(b));
  }
  require_same(mesh.dp(), "the weights", digests,
               "a device or the network has computed wrong results; continue from the last "
               "checkpoint without that host");
}

namespace {

// The matmul libraries count rows in 32 bits; bytes are counted in 64.
void refuse_overflow(const ModelConfig& config, const StepShape& shape) {
  const double tokens = static_cast<double>(shape.batch_size) * static_cast<double>(shape.seq_len);
  const double per_token = 32.0 * static_cast<double>(config.n_embd * config.n_layer) +
                           4.0 * static_cast<double>(config.padded_vocab_size());
  if (tokens < 0x1p31 && tokens * per_token * 8 < 0x1p60) return;
  throw UserError(
      "--batch-size {} with --seq-len {} is more than a micro-step can hold: lower one of them",
      shape.batch_size, shape.seq_len);
}

}  // namespace

MemoryPlan plan_training(const ModelConfig& config, const OptimizerConfig& optimizer,
                         const StepShape& shape, Device& real, const Mesh& mesh) {
  refuse_overflow(config, shape);
  return count_memory(real, [&](Device& device, Arena& arena) {
    Trainer(config, optimizer, shape, device, mesh, arena);
  });
}

// More logits at once are faster: each chunk reads and writes the whole gradient of the embeddings.
MemoryPlan plan_training_within(size_t memory, const ModelConfig& config,
                                const OptimizerConfig& optimizer, StepShape& shape, Device& device,
                                const Mesh& mesh) {
  constexpr int64_t kMost = int64_t{1} << 30, kLeast = int64_t{1} << 26;
  const bool choose = shape.logits_at_once == 0 && memory > 0;
  if (choose) shape.logits_at_once = kMost;
  MemoryPlan plan = plan_training(config, optimizer, shape, device, mesh);
  while (choose && plan.total() > memory && shape.logits_at_once > kLeast) {
    shape.logits_at_once /= 2;
    plan = plan_training(config, optimizer, shape, device, mesh);
  }
  return plan;
}

}  // namespace lathe
