// Saves checkpoints, which all ranks write together, and restores a run from one.
#pragma once

#include <cstdint>

#include "src/train/run.h"

namespace lathe {

// Writes OUT/step-N with all that restore_checkpoint() needs, after `step` steps. Each rank writes
// its share. `prune`: removes all but the newest --keep checkpoints.
void save_checkpoint(Run& run, int64_t step, bool prune);

// Restores masters, moments, loader position and counters from run.setup().resume_from. UserError
// if the checkpoint does not fit the run.
void restore_checkpoint(Run& run);

}  // namespace lathe
