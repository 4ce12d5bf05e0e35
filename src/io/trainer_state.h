// What a run needs, besides weights and moments, to resume as if it had never stopped: trainer.json
// of a checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace lathe {

// Goes up if the same run has other bits than before. Since 2 the gradient norm is exact. Since 3
// stochastic rounding depends neither on the number of ranks nor on the buckets.
inline constexpr int64_t kTrainerStateVersion = 3;

struct LoaderState {
  std::string sampling{};  // "random" or "sequential"
  int64_t step = 0;        // of the run: the step whose batch comes next
  bool operator==(const LoaderState&) const = default;
};

// What must be the same for a resumed run to give the same bits.
struct RunLayout {
  int64_t world_size = 1;
  int64_t zero_stage = 0;
  // How often the ranks reduced gradients in a step of several micro-steps: "step" or "micro-step".
  std::string reduce_each = "step";
  int64_t threads = 1;
  std::string cpu{};     // the device's name: kind of CPU or GPU
  std::string dtype{};   // "fp32" or "bf16"
  std::string device{};  // "cpu" or "cuda"
  bool operator==(const RunLayout&) const = default;
};

struct TrainerState {
  int64_t version = kTrainerStateVersion;  // of the program that wrote it; older ones are read, too
  int64_t step = 0;                        // steps done
  int64_t tokens = 0;                      // tokens seen by all ranks
  int64_t skipped_steps = 0;  // steps done whose update was skipped for a NaN or infinity
  uint64_t seed = 0;          // with the step, the whole state of the random numbers
  LoaderState loader{};
  RunLayout layout{};
  std::string matmul_plans{};                   // Device::plans(); left out of the file if empty
  std::string data_fingerprint{};               // of --data; left out of the file if empty
  std::map<std::string, std::string> config{};  // the resolved configuration, flag -> value
  bool operator==(const TrainerState&) const = default;
};

// UserError if a string is not UTF-8.
std::string to_json(const TrainerState& state);

// Throws UserError that names `file` and the key: another format or version, or unknown, missing,
// mistyped or negative values.
TrainerState parse_trainer_state(std::string_view text, std::string_view file);

TrainerState read_trainer_state(const std::filesystem::path& path);

}  // namespace lathe
