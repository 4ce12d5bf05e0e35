#include "src/train/progress.h"

#include "src/train/save.h"

namespace lathe {

Progress::Progress(Run& run, Ending& ending, Report& report, StepTrace& trace)
    : run_(run),
      ending_(ending),
      report_(report),
      trace_(trace),
      done_(run.first_step),
      saved_(run.first_step) {}

void Progress::collect_all_but(int64_t in_flight) {
  StepState& state = run_.trainer.state;
  while (state.requested() > in_flight) {
    const StepResults results = run_.trainer.collect_results();
    if (!ending_.count(results)) continue;
    ending_.attempt([&] {
      report_.step(done_ + 1, results, slot_of(done_));
      trace_.end(done_, slot_of(done_));
    });
    ++done_;
    bad_in_a_row_ = results.skip ? bad_in_a_row_ + 1 : 0;
    run_.skipped_steps += results.skip;
  }
}

void Progress::collect() {
  const TrainOptions& o = run_.options();
  const int64_t in_flight = run_.trainer.state.requested();
  const bool may_be_too_many = bad_in_a_row_ + in_flight >= o.max_skipped_steps;
  collect_all_but(run_.trainer.device.asynchronous() && !may_be_too_many ? 1 : 0);
  if (bad_in_a_row_ < o.max_skipped_steps) return;
  write();
  throw CheckError(
      fmt::format("{} steps in a row had a loss or gradient that is not finite; the weights are "
                  "those after the last good step{}",
                  bad_in_a_row_, o.out.empty() ? "" : ", saved in " + o.out));
}

void Progress::save(bool run_ends) {
  collect_all();
  if (run_ends || bad_in_a_row_ == 0) return write();
  report_.save_skipped(done_, bad_in_a_row_);
}

void Progress::write() {
  if (!run_.options().writes() || done_ == saved_) return;
  ending_.attempt([&] { report_.before_save(); });
  save_checkpoint(run_, done_, /*prune=*/bad_in_a_row_ == 0);
  saved_ = done_;
}

}  // namespace lathe
