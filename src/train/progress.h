// Progress of a run: the steps in flight on the device, the steps done, and the steps saved.
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

  // The slot of a step's results, times and spans.
  static int slot_of(int64_t step) { return static_cast<int>(step % Trainer::kSlots); }

  // Waits for all enqueued steps and reports them.
  void collect_all() { collect_all_but(0); }
  // The same, but leaves the newest step in flight, unless the steps in flight may complete
  // --max-skipped-steps bad steps in a row. After that many, saves a checkpoint of the last good
  // step and throws CheckError.
  void collect();

  // Saves a checkpoint. After bad steps the weights are those of the last good step, whose
  // checkpoints must stay: then it saves only at the end of the run and removes nothing.
  void save(bool run_ends);

 private:
  void collect_all_but(int64_t in_flight);
  void write();

  Run& run_;
  Ending& ending_;
  Report& report_;
  StepTrace& trace_;
  int64_t done_, saved_;  // steps
  int64_t bad_in_a_row_ = 0;
};

}  // namespace lathe
