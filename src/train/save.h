// A run on disk: checkpoints that all ranks write together, and how a run resumes from one.
#pragma once

#include <cstdint>

#include "src/train/run.h"

namespace lathe {

// Writes OUT/step-N with all that restore_checkpoint() needs. `step` steps are done. All ranks
// write, each its share. `prune`: only the newest --keep stay.
void save_checkpoint(Run& run, int64_t step, bool prune);

// Masters, moments, place in the data and counters of run.setup().resume_from. UserError if the
// checkpoint does not fit the run.
void restore_checkpoint(Run& run);

}  // namespace lathe
