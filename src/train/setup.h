// The setup of a run: the options, completed and checked against the data and weights on disk.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "src/comm/communicator.h"
#include "src/data/loader.h"
#include "src/data/tokenizer.h"
#include "src/io/directory_lock.h"
#include "src/train/options.h"
#include "src/train/trainer.h"

namespace lathe {

// This rank's device: one of the host's GPUs, chosen by `place`, or its share of the cores.
std::unique_ptr<Device> make_rank_device(const TrainOptions& options, const Place& place);
CommunicatorOptions communicator_options(const TrainOptions& options);
// What `ranks` data-parallel ranks share.
DataParallelOptions parallel_options(const TrainOptions& options, int64_t ranks);

// The options, with the vocabulary taken from the data and the model's sizes from --init or the
// checkpoint, and what the run needs. Constructing one is collective.
struct Setup {
  Setup(const TrainOptions& options, Device& device, const World& world, const Mesh& mesh);

  TrainOptions options;
  std::unique_ptr<Tokenizer> tokenizer;  // null if --data has none
  OpenShardFile open = map_shard_file;   // --reader
  std::filesystem::path resume_from;     // empty: a fresh run
  StepShape shape;
  MemoryPlan plan;
  std::string data_fingerprint;         // "" without --data
  std::unique_ptr<DirectoryLock> lock;  // of --out, held by rank 0

 private:
  void take_vocabulary();
  void take_sizes(const std::filesystem::path& weights, const ModelConfig& asked);
  void take_tokenizer(const std::filesystem::path& weights);
  void plan_memory(Device& device, const Mesh& mesh);
};

}  // namespace lathe
