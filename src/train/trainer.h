// What a training step needs: model, optimizer, parameters, the state of the step and its batches.
// The program, the tests, the benchmarks and the memory plan all build this one class;
// src/train.cpp has the step itself.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/device/arena.h"
#include "src/model/decoder.h"
#include "src/model/offload.h"
#include "src/model/optimizer.h"
#include "src/model/transformer.h"
#include "src/parallel/data_parallel.h"
#include "src/parallel/mesh.h"
#include "src/parallel/schedule.h"
#include "src/train/clock.h"

namespace lathe {

// Sizes of a rank's step beyond those of the model.
struct StepShape {
  DType dtype = DType::fp32;
  int64_t batch_size = 1;   // sequences of a micro-step
  int64_t seq_len = 1;      // tokens of a sequence
  int64_t micro_steps = 1;  // of a step
  int64_t decode_len = 0;   // positions of the KV cache for samples; 0: none
  Recompute recompute = Recompute::none;
  int64_t logits_at_once = 0;  // about; 0: the device's choice
  DataParallelOptions parallel;
  Offload offload;
};

// What the host passes to the device for a step.
struct StepStart {
  uint64_t seed = 0;
  int64_t step = 0;
  double learning_rate = 0;
  double stop_vote = 0;   // not 0: the run should end after this step
  double first_loss = 0;  // NaN: no rank may update anything
};

class Trainer {
 public:
  // Allocates all memory of a training run from the arena. The ranks of the mesh share each step.
  Trainer(const ModelConfig& config, const OptimizerConfig& optimizer, const StepShape& shape,
          Device& device, const Mesh& mesh, Arena& arena);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  int64_t tokens_per_step() const;  // of all ranks

  // Starts a step or an evaluation: sets the loss to `first_loss`.
  void begin(const StepStart& start);
  // Copies B x T tokens and targets to the device as micro-step m's.
  void upload(int64_t micro_step, const int32_t* tokens, const int32_t* targets);
  // The device memory of micro-step m's batch, the same in every step.
  MicroBatch batch(int64_t micro_step) const;

  // The results of the oldest requested step. Throws what has gone wrong in the host's part of it
  // (Optimizer::rethrow).
  StepResults collect_results();

  // From now on uses another table of operations, which observes the device's.
  void use(const Ops& ops);
  const Ops& ops() const { return model.ops(); }

  // Fills the masters (or the weights, if they are the masters): each rank its share, then the
  // ranks exchange what they need. `fill` gets elements [begin, begin + to.elements()) of the
  // layout. If it throws on one rank, the job ends.
  using Fill = std::function<void(int64_t begin, const Tensor& to)>;
  void set_masters(const Fill& fill);
  // The same with the weights of a model in Hugging Face format.
  void read_masters(const std::filesystem::path& directory);
  // All masters of a bucket, on every rank. If each rank owns a share, gathers them into the
  // gradients' memory, which overwrites the gradients; valid until the next call. A rank that
  // cannot read its own takes part and then throws.
  Tensor gathered_masters(size_t bucket);
  // Computes the weights from the masters, rounded as in the last update. `seed`: of the run.
  void round_weights(uint64_t seed);
  // Throws UserError if the ranks' weights differ.
  void compare_replicas();

  // Two steps may be in flight; each has a slot for its results, times and spans.
  static constexpr int kSlots = kStepSlots;

  // Keys of the device's recordings (Device::replay): one for the step of each slot, and these.
  enum RecordingKey : int { kEvaluation = kSlots, kTracedStep };

  const StepShape shape;
  Device& device;
  const Mesh mesh;
  StepState state;
  const std::unique_ptr<ParameterStore> parameters;
  const std::vector<Action> schedule;  // of a step
  std::vector<Activations> in_flight;  // of micro-steps between forward and backward
  Transformer model;
  Optimizer optimizer;
  std::array<StepClock, kSlots> clocks;
  std::optional<Decoder> decoder;  // if decode_len > 0

 private:
  // Whether this rank has all masters of a bucket.
  bool has_all(size_t bucket) const;

  Tensor tokens_mbt_, targets_mbt_;  // of all micro-steps of a step
  std::vector<StepInputs> step_inputs_;
};

// The bytes, by category, of a Trainer with these arguments, which it builds without allocating
// memory. UserError if the sizes exceed what a micro-step can hold.
MemoryPlan plan_training(const ModelConfig& config, const OptimizerConfig& optimizer,
                         const StepShape& shape, Device& device, const Mesh& mesh);

// The same. If shape.logits_at_once is 0 and `memory` is known (not 0), also sets it to as many as
// `memory` bytes allow, 2^26 to 2^30.
MemoryPlan plan_training_within(size_t memory, const ModelConfig& config,
                                const OptimizerConfig& optimizer, StepShape& shape, Device& device,
                                const Mesh& mesh);

}  // namespace lathe
