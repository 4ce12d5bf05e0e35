// How far the run has come: the steps that the device is still at work on, those that are done, and
// what is saved.
#pragma once

#include <cstdint>

#include "src/train/ending.h"
#include "src/train/report.h"
#include "src/train/run.h"
#include "src/train/trace.h"

namespace lathe {

class Progress {
 public:
  Progress(Run& run, Ending& ending, Report& report, StepTrace& trace);

  // Where a step keeps what is read after it is done.
  static int slot_of(int64_t step) { return static_cast<int>(step % Trainer::kSlots); }

  // Waits for all steps that were enqueued, and reports them.
  void collect_all() { collect_all_but(0); }
  // The same, but lets the device go on with the last one, unless that may be one bad step too
  // many: nothing is trained behind it. Throws CheckError, after a checkpoint of the last good
  // step, if --max-skipped-steps in a row were bad.
  void collect();

  // A checkpoint of what is done. While steps are bad the weights are those of the last good one,
  // whose checkpoints must stay: then only the end of the run is saved, and nothing is removed.
  void save(bool run_ends);

 private:
  void collect_all_but(int64_t under_way);
  void write();

  Run& run_;
  Ending& ending_;
  Report& report_;
  StepTrace& trace_;
  int64_t done_, saved_;  // steps
  int64_t bad_in_a_row_ = 0;
};

}  // namespace lathe
