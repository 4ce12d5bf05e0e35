// What a run will be: the options, completed and checked against the data and the weights on disk.
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

// This rank's device: of a host's GPUs the one that its place names, of its cores its share.
std::unique_ptr<Device> make_rank_device(const TrainOptions& options, const Place& place);
CommunicatorOptions communicator_options(const TrainOptions& options);

// Options completed by what the data and the weights say: vocabulary, sizes of a model taken from
// --init or the checkpoint. And what the run will need. All ranks make one together.
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
