// What a training step needs: model, optimizer, the state of the step, its batches, and what the
// ranks do together. The program, the tests, the benchmarks and the memory plan all build this one
// class; src/train.cpp has the step itself.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/device/arena.h"
#include "src/model/decoder.h"
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
  int64_t bucket_elements = Sharding().bucket_elements;  // the smallest bucket of gradients
  int64_t zero_stage = 0;                                // 1: ranks share the optimizer's state
  bool reduce_bf16 = false;                              // gradients cross the network as bf16
  int64_t logits_at_once = 0;                            // about; 0: the device's choice
};

// What the host tells the device about a step.
struct StepStart {
  uint64_t seed = 0;
  int64_t step = 0;
  double learning_rate = 0;
  double stop_vote = 0;   // not 0: the run should end after this step
  double first_loss = 0;  // NaN: no rank may update anything
};

class Trainer {
 public:
  // Takes all memory of a training run from the arena. The ranks of the mesh share each step.
  Trainer(const ModelConfig& config, const OptimizerConfig& optimizer, const StepShape& shape,
          Device& device, const Mesh& mesh, Arena& arena);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  int64_t tokens_per_step() const;  // of all ranks

  // Starts a step (or an evaluation): the loss is `first_loss`.
  void begin(const StepStart& start);
  // Copies B x T tokens and targets to the device as micro-step m's.
  void upload(int64_t micro_step, const int32_t* tokens, const int32_t* targets);
  // Where micro-step m's are, in every step.
  MicroBatch batch(int64_t micro_step) const;

  // Runs on another table from here on: one that observes the device's.
  void use(const Ops& ops);
  const Ops& ops() const { return model.ops(); }

  // Rank 0 fills all masters (or the weights, if they are the masters), the others get them.
  using Fill = std::function<void(const Tensor& all)>;
  void set_masters(const Fill& fill);
  // All masters on every rank. If ranks share them they lie in the gradients, which are lost.
  Tensor gathered_masters();
  // Makes the weights from the masters, rounded as in the last update; `seed`: of the run.
  void round_weights(uint64_t seed);
  // Throws UserError if the ranks' weights are no longer the same.
  void compare_replicas();

  // Two steps may be under way; each has a slot for what is read after it is done.
  static constexpr int kSlots = kStepSlots;

  // What the device may record (Device::replay): a step of each slot, and these.
  enum RecordingKey : int { kEvaluation = kSlots, kTracedStep };

  const StepShape shape;
  Device& device;
  const Mesh mesh;
  StepState state;
  const std::unique_ptr<ParameterStore> parameters;
  const std::vector<Action> schedule;  // of a step
  std::vector<Activations> in_flight;  // of the micro-steps between their two passes
  Transformer model;
  Optimizer optimizer;
  std::array<StepClock, kSlots> clocks;
  std::optional<Decoder> decoder;  // if decode_len > 0

 private:
  Tensor tokens_mbt_, targets_mbt_;  // of all micro-steps of a step
  std::vector<StepInputs> step_inputs_;
};

// The bytes, by category, of a Trainer with these arguments: it is built on memory that nobody
// backs. UserError if the sizes are beyond what a micro-step can hold.
MemoryPlan plan_training(const ModelConfig& config, const OptimizerConfig& optimizer,
                         const StepShape& shape, Device& device, const Mesh& mesh);

// The same with as many logits at once as `memory` bytes allow, 2^26 to 2^30, if the shape leaves
// that open (0) and memory is known (not 0); the shape then says how many.
MemoryPlan plan_training_within(size_t memory, const ModelConfig& config,
                                const OptimizerConfig& optimizer, StepShape& shape, Device& device,
                                const Mesh& mesh);

}  // namespace lathe
