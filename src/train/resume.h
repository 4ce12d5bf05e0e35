// Resuming a run: from which checkpoint, what must be as it was, and what makes other bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/device/device.h"
#include "src/io/checkpoint.h"
#include "src/io/trainer_state.h"
#include "src/train/flags.h"

namespace lathe {

// The checkpoint that --resume and --out choose, verified; empty: a fresh run. UserError if that
// would leave a run's own past behind.
std::filesystem::path checkpoint_to_resume(const TrainOptions& options);

// UserError if step, seed, tokens or loader position cannot be those of this checkpoint and run.
void refuse_unfit(const TrainerState& state, const Manifest& manifest, const TrainOptions& options,
                  const std::filesystem::path& checkpoint);

// UserError if a flag that makes a run what it is (OnResume::same) has changed since `checkpoint`.
// A flag that the checkpoint does not know yet had its default.
void refuse_changes(const ConfigKeys& before, const ConfigKeys& now,
                    const std::filesystem::path& checkpoint);

// Whether the flags that decide how matrix products are computed are as they were.
bool same_products(const ConfigKeys& before, const ConfigKeys& now, const Device& device);

// Why the run will go on with other bits, as the end of a sentence about the checkpoint; empty: it
// will not.
std::string difference_to(const TrainerState& before, const ConfigKeys& now,
                          const std::string& data_fingerprint, int64_t ranks, const Device& device);

}  // namespace lathe
