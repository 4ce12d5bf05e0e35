#include "src/train/trainer.h"

#include "kernels/imagined_device.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"

namespace lathe {

Trainer::Trainer(const GPT2Config& config, const OptimizerConfig& optimizer_config,
                 const StepShape& s, Device& on, Communicator& ranks, Arena& arena)
    : shape(s),
      device(on),
      communicator(ranks),
      model(config, s.dtype, s.batch_size, s.seq_len, on, arena, s.recompute,
            {ranks.size(), s.bucket_elements}, s.logits_at_once),
      optimizer(optimizer_config, model.weights(), model.gradients(), model.layout(), on, arena,
                {ranks.rank(), s.zero_stage >= 1 && ranks.size() > 1}),
      state(on, arena, s.micro_steps),
      clocks{StepClock(on, s.micro_steps), StepClock(on, s.micro_steps)},
      parallel(ranks, on, model, optimizer, state, s.reduce_bf16 && ranks.size() > 1, arena),
      tokens_mbt_(arena.allocate(MemoryCategory::batch, DType::int32,
                                 {s.micro_steps, s.batch_size, s.seq_len})),
      targets_mbt_(arena.allocate(MemoryCategory::batch, DType::int32, tokens_mbt_.shape)),
      step_inputs_(static_cast<size_t>(s.micro_steps)) {
  if (s.decode_len > 0)
    decoder.emplace(config, model.weights(), s.decode_len, s.decode_len, on, arena);
}

int64_t Trainer::tokens_per_step() const {
  return shape.batch_size * shape.seq_len * shape.micro_steps * ranks();
}

// Sequence s of a step is the same whichever rank and micro-step has it.
void Trainer::begin(const StepStart& start) {
  for (size_t m = 0; m < step_inputs_.size(); ++m) {
    const int64_t before = rank() * shape.micro_steps + static_cast<int64_t>(m);
    step_inputs_[m] = {.seed = start.seed,
                       .first_sequence = static_cast<uint64_t>(before * shape.batch_size),
                       .step = static_cast<uint32_t>(start.step),
                       .learning_rate = static_cast<float>(start.learning_rate),
                       .stop_vote = start.stop_vote,
                       .first_loss = m == 0 ? start.first_loss : 0};
  }
  state.begin(model.ops(), step_inputs_);
}

void Trainer::upload(int64_t micro_step, const int32_t* tokens, const int32_t* targets) {
  const MicroBatch to = batch(micro_step);
  device.upload(to.tokens_bt, tokens);
  device.upload(to.targets_bt, targets);
}

MicroBatch Trainer::batch(int64_t micro_step) const {
  const Shape bt{shape.batch_size, shape.seq_len};
  return {tokens_mbt_.rows(micro_step, 1).reshaped(bt),
          targets_mbt_.rows(micro_step, 1).reshaped(bt), state.inputs(micro_step)};
}

// If a rank keeps a share, all masters pass through the gradients, of which there are none yet.
void Trainer::set_masters(const Fill& fill) {
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

Tensor Trainer::gathered_masters() {
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

void Trainer::round_weights(uint64_t seed) {
  const Tensor& weights = optimizer.weights();
  if (weights.data == optimizer.masters().data) return;
  const int64_t updates = state.results().updates;
  const bool at_random = optimizer.config().stochastic_rounding && updates > 0;
  if (at_random) begin({.seed = seed, .step = updates});
  for (const ShardPart& part : optimizer.shard()) {
    model.ops().run(Cast{.destination = weights.rows(part.local, part.elements),
                         .source = optimizer.masters().rows(part.local, part.elements),
                         .rounding = at_random ? state.inputs(0) : nullptr,
                         .first_element = part.begin},
                    {});
  }
  parallel.gather_weights();
}

void Trainer::compare_replicas() {
  if (ranks() == 1) return;
  std::string digest = digest_of(device, model.weights().flat);
  // If each rank has all masters, they are the weights, and bf16 shows half of their bits.
  if (!optimizer.sharded() && optimizer.masters().data != model.weights().flat.data)
    digest += digest_of(device, optimizer.masters());
  require_same(communicator, "the weights", digest,
               "a device or the network has computed something wrong; continue from the last "
               "checkpoint without that host");
}

namespace {

// Rows are counted in 32 bits by the matmul libraries, bytes in 64 by everyone.
void refuse_overflow(const GPT2Config& config, const StepShape& shape) {
  const double tokens = static_cast<double>(shape.batch_size) * static_cast<double>(shape.seq_len);
  const double per_token = 32.0 * static_cast<double>(config.n_embd * config.n_layer) +
                           4.0 * static_cast<double>(config.padded_vocab_size());
  if (tokens < 0x1p31 && tokens * per_token * 8 < 0x1p60) return;
  throw UserError(
      "--batch-size {} with --seq-len {} is more than a micro-step can hold: lower one of them",
      shape.batch_size, shape.seq_len);
}

}  // namespace

MemoryPlan plan_training(const GPT2Config& config, const OptimizerConfig& optimizer,
                         const StepShape& shape, Device& real, Communicator& communicator) {
  refuse_overflow(config, shape);
  return count_memory(real, [&](Device& device, Arena& arena) {
    Trainer(config, optimizer, shape, device, communicator, arena);
  });
}

// Each chunk of logits reads and writes all of the embeddings' gradient.
MemoryPlan plan_training_within(size_t memory, const GPT2Config& config,
                                const OptimizerConfig& optimizer, StepShape& shape, Device& device,
                                Communicator& communicator) {
  constexpr int64_t kMost = int64_t{1} << 30, kLeast = int64_t{1} << 26;
  const bool choose = shape.logits_at_once == 0 && memory > 0;
  if (choose) shape.logits_at_once = kMost;
  MemoryPlan plan = plan_training(config, optimizer, shape, device, communicator);
  while (choose && plan.total() > memory && shape.logits_at_once > kLeast) {
    shape.logits_at_once /= 2;
    plan = plan_training(config, optimizer, shape, device, communicator);
  }
  return plan;
}

}  // namespace lathe
