// Resuming a run: from which checkpoint, what must not change, and what changes later bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/device/device.h"
#include "src/io/checkpoint.h"
#include "src/io/trainer_state.h"
#include "src/train/flags.h"

namespace lathe {

// The verified checkpoint that --resume and --out choose; empty for a fresh run. UserError if the
// run would write to --out without continuing from its newest checkpoint.
std::filesystem::path checkpoint_to_resume(const TrainOptions& options);

// UserError if the counters, seed or loader position in trainer.json contradict the checkpoint or
// the options.
void refuse_unfit(const TrainerState& state, const Manifest& manifest, const TrainOptions& options,
                  const std::filesystem::path& checkpoint);

// UserError if a flag that must not change (OnResume::same) has changed since `checkpoint`. A flag
// that an older checkpoint lacks counts as its default.
void refuse_changes(const ConfigKeys& before, const ConfigKeys& now,
                    const std::filesystem::path& checkpoint);

// Whether the flags that affect matrix products are unchanged.
bool same_products(const ConfigKeys& before, const ConfigKeys& now, const Device& device);

// Why the resumed run will not continue bit for bit, as the end of a sentence about the checkpoint;
// empty if it will. `reduce_each`: this run's (RunLayout).
std::string difference_to(const TrainerState& before, const ConfigKeys& now,
                          const std::string& data_fingerprint, const Communicator& world,
                          const std::string& reduce_each, const Device& device);

}  // namespace lathe
