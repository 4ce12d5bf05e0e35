// The options of build/train as values. flags.h lists its flags by name.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "src/comm/communicator.h"
#include "src/data/loader.h"
#include "src/model/activations.h"
#include "src/model/config.h"
#include "src/model/offload.h"
#include "src/model/optimizer.h"
#include "src/model/parameters.h"

namespace lathe {

// Where a flag's value came from.
enum class FlagSource : uint8_t { preset, file, command_line };

// Of the learning rate after the warm-up.
enum class Schedule : uint8_t { cosine, linear, constant, wsd };
std::string_view name_of(Schedule schedule);

// How lr and min_lr grow with the number of ranks.
enum class LrScale : uint8_t { none, linear, sqrt };
std::string_view name_of(LrScale scale);

// When the ranks reduce gradients. `automatic`: each step with --zero-stage 0 and 1, each
// micro-step with 2 and 3.
enum class ReduceEach : uint8_t { automatic, step, micro_step };
std::string_view name_of(ReduceEach each);

// How shards are read.
enum class Reader : uint8_t { mmap, mpi_io };
std::string_view name_of(Reader reader);

struct TrainOptions {
  std::string model = "gpt2-124m";
  ModelConfig model_config;  // vocab_size 0: that of the data

  std::string data;
  float init_std = kInitStd;
  std::string init = "random";  // or a directory in Hugging Face format
  Sampling sampling = Sampling::random;
  Reader reader = Reader::mmap;
  int64_t batch_size = 4;        // sequences of a rank's micro-step
  int64_t total_batch_size = 0;  // tokens of a step over all ranks; 0: one micro-step
  int64_t steps = 1000;
  uint64_t seed = 1337;

  double lr = 6e-4;
  double min_lr = 6e-5;
  int64_t warmup_steps = 100;
  int64_t lr_decay_steps = 0;  // 0: steps
  Schedule schedule = Schedule::cosine;
  OptimizerConfig optimizer;

  DType dtype = DType::fp32;
  DeviceKind device = DeviceKind::any;
  int threads = 0;  // 0: OpenMP's choice
  CudaDeviceOptions cuda;
  int64_t chunk_logits = 0;  // logits at once; 0: as many as memory allows
  Recompute recompute = Recompute::none;
  std::string offload_text;  // KIND=PLACE
  Offload offload;           // parsed from it

  int64_t zero_stage = 0;  // what ranks share: 1 the optimizer's state, 2 gradients, 3 weights
  int64_t zero_slots = 2;  // layers whose weights are there at once (DataParallelOptions)
  ReduceEach reduce_each = ReduceEach::automatic;
  int64_t bucket_mb = 16;            // MiB of adjacent gradients that form a bucket
  DType reduce_dtype = DType::fp32;  // of gradients on the network
  CommKind comm = CommKind::any;
  int64_t comm_timeout = 300;  // seconds
  std::string rendezvous;
  LrScale lr_scale = LrScale::none;
  int64_t replica_check_interval = 1000;  // steps between comparisons of weights; 0: none

  int64_t eval_interval = 250;  // steps; 0: never
  int64_t eval_batches = 0;     // 0: the whole validation set
  bool eval_only = false;
  int64_t log_interval = 0;  // 0: the default of ConsoleOptions
  int64_t sample_interval = 0;
  int64_t sample_tokens = 256;
  int64_t max_skipped_steps = 10;  // in a row; then the run stops

  std::string trace;                           // file
  std::string tuning_log;                      // file
  std::string profile;                         // A:B
  int64_t profile_begin = 0, profile_end = 0;  // steps, parsed from it; equal: none
  std::string out;
  std::string resume = "auto";
  int64_t checkpoint_interval = 0;  // 0: only at the end
  int64_t keep = 2;

  bool dry_run = false;
  bool benchmark = false;

  std::map<std::string, FlagSource> sources;  // by flag without dashes; absent: the preset
  FlagSource source_of(const std::string& flag) const {
    const auto found = sources.find(flag);
    return found == sources.end() ? FlagSource::preset : found->second;
  }

  bool writes() const { return !out.empty() && !dry_run && !eval_only && !benchmark; }
  int64_t decay_steps() const { return lr_decay_steps > 0 ? lr_decay_steps : steps; }
  // Micro-steps per step. UserError if total_batch_size is not a multiple of a micro-step's tokens,
  // or needs more than 2^20 micro-steps.
  int64_t micro_steps(int64_t ranks) const;  // ranks: data-parallel
  bool reduces_each_micro_step() const {
    return zero_stage >= 2 || reduce_each == ReduceEach::micro_step;
  }
};

// A preset by name: the sizes of a model and the flags to train it. UserError if there is none.
TrainOptions preset(const std::string& model);
std::string preset_names();  // separated by commas

// The learning rate at a step: linear warm-up to lr, then the schedule down to min_lr. cosine and
// linear reach min_lr after decay_steps; wsd holds lr and decays linearly over the last fifth.
double learning_rate(const TrainOptions& options, int64_t step);

}  // namespace lathe
