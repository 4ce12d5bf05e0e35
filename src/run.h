// Everything that a training run holds, put together from the options: device, memory, model,
// optimizer, data; and how it is saved and taken up again.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device/arena.h"
#include "src/data/loader.h"
#include "src/data/tokenizer.h"
#include "src/io/directory_lock.h"
#include "src/io/trainer_state.h"
#include "src/model/decoder.h"
#include "src/model/gpt2.h"
#include "src/model/optimizer.h"
#include "src/model/plan.h"
#include "src/options.h"
#include "src/parallel/communicator.h"
#include "src/parallel/data_parallel.h"

namespace lathe {

// This rank's device: of a host's GPUs the one that its place names, of its cores its share.
std::unique_ptr<Device> make_rank_device(const TrainOptions& options, const Place& place);
CommunicatorOptions communicator_options(const TrainOptions& options);

// Options completed by what the data and the weights say: vocabulary, sizes of a model taken from
// --init or the checkpoint. And what the run will need. All ranks make one together.
struct Setup {
  Setup(const TrainOptions& options, Device& device, const World& world,
        Communicator& communicator);

  TrainOptions options;
  std::unique_ptr<Tokenizer> tokenizer;  // null where --data has none
  OpenShardFile open = map_shard_file;   // --reader
  std::filesystem::path resume_from;     // empty: a fresh run
  RunShape shape;
  MemoryPlan plan;
  std::string data_fingerprint;         // "" without --data
  std::unique_ptr<DirectoryLock> lock;  // of --out, held by rank 0

 private:
  void take_sizes(const std::filesystem::path& weights, const GPT2Config& asked);
  void take_tokenizer(const std::filesystem::path& weights);
  void plan_memory(Device& device);
};

// What a rank says with a step.
struct StepVote {
  double stop = 0;  // not 0: the run should end after it
  double loss = 0;  // NaN: no rank may update anything
};

class Run {
 public:
  Run(Setup setup, Device& device, Communicator& communicator);

  const TrainOptions& options() const { return setup_.options; }
  int64_t tokens_per_step() const;  // of all ranks
  int64_t micro_steps() const { return setup_.shape.micro_steps; }
  const Setup& setup() const { return setup_; }
  int rank() const { return communicator.rank(); }
  int ranks() const { return communicator.size(); }

  // Writes OUT/step-N with all that Run(resume) needs. `step` steps are done. All ranks write, each
  // its share. `prune`: the newest --keep are kept.
  void save(int64_t step, bool prune = true);

  // After the first step of this process, when its products are planned: all ranks compute them as
  // rank 0 does, and --tuning-log is written.
  void settle_products();

  // Starts a step: the loss is 0, the device knows learning rate, step and seed, and this rank's
  // vote.
  void begin(int64_t step, const StepVote& vote = {});
  // Copies a batch to the device as micro-step m's.
  void upload(const Batch& batch, int64_t micro_step);
  // One without targets for each micro-step: this rank has none, and the others wait for it.
  void upload_blanks();
  // Where micro-step m's is, in every step.
  MicroBatch batch(int64_t micro_step) const;

  // Throws where the ranks' weights are no longer the same.
  void compare_replicas();

 private:
  Setup setup_;

 public:
  Device& device;
  Communicator& communicator;
  Arena arena;
  GPT2 model;
  Optimizer optimizer;
  StepState state;
  DataParallel parallel;
  std::optional<Decoder> decoder;  // where samples are wanted
  Loader loader;
  std::optional<EvalLoader> validation;  // where there is a validation set and it is wanted
  int64_t first_step = 0;                // steps done before this run
  int64_t skipped_steps = 0;             // updates left out for a NaN or infinity, in all

 private:
  template <typename Fill>
  void set_masters(const Fill& fill);
  Tensor gathered_masters();
  void restore();
  void share_plans();
  void write_tuning_log() const;
  void round_weights();  // from masters, as the last update left them
  TrainerState trainer_state(int64_t step) const;

  Tensor tokens_mbt_, targets_mbt_;  // of all micro-steps of a step
  std::vector<StepInputs> step_inputs_;
};

}  // namespace lathe
