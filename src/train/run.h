// A training run: the trainer, its data, and how far it has come.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/device/arena.h"
#include "src/data/loader.h"
#include "src/train/setup.h"
#include "src/train/trainer.h"

namespace lathe {

// What a rank sends with a step.
struct StepVote {
  double stop = 0;  // not 0: the run should end after the step
  double loss = 0;  // NaN: no rank may update anything
};

class Run {
 public:
  // Starts with the weights of setup.resume_from, of --init, or random ones.
  Run(Setup setup, Device& device, const Mesh& mesh);

  const TrainOptions& options() const { return setup_.options; }
  const Setup& setup() const { return setup_; }
  const Mesh& mesh() const { return trainer.mesh; }
  int64_t micro_steps() const { return setup_.shape.micro_steps; }
  int64_t tokens_per_step() const { return trainer.tokens_per_step(); }  // of all ranks
  int64_t validation_batches() const;  // per evaluation, on this rank

  // Starts a step: resets the loss and gives the device the learning rate, step, seed and this
  // rank's vote.
  void begin(int64_t step, const StepVote& vote = {});
  // Copies a batch to the device as micro-step m's.
  void upload(const Batch& batch, int64_t micro_step);
  // Uploads batches without targets: this rank has no data, but the others wait for it in this
  // step.
  void upload_blanks();

 private:
  Setup setup_;
  Arena arena_;

 public:
  Trainer trainer;
  Loader loader;
  std::optional<EvalLoader> validation;  // if the run evaluates
  int64_t first_step = 0;                // steps done before this run
  int64_t skipped_steps = 0;             // updates skipped for a NaN or infinity, in all
};

}  // namespace lathe
