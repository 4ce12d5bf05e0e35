// Ends a run before its last step, because a signal asked for it or because something failed that
// left the weights intact. All ranks first save a checkpoint together; then the error is thrown.
#pragma once

#include <exception>
#include <optional>

#include "src/io/signals.h"
#include "src/train/run.h"

namespace lathe {

class Ending {
 public:
  // `signals`: from now on stop signals only set a flag (StopSignal).
  Ending(Run& run, bool signals);

  // Runs body(). If it throws, keeps the first such error, requests the end of the run, and returns
  // false.
  template <typename Body>
  bool attempt(const Body& body) {
    try {
      body();
      return true;
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
      return false;
    }
  }

  // This rank requests the end of the run.
  bool requested() const { return failure_ != nullptr || (stop_ && stop_->requested()); }
  // The run ends now, on all ranks. A single rank ends at once; several end when all know of the
  // request.
  bool agreed() const { return run_.mesh().ranks() > 1 ? known_to_all_ : requested(); }
  // Exchanges the requests of all ranks and returns agreed(). Collective. For long work between
  // steps, during which no votes travel.
  bool ask_all();

  // The vote that this rank sends with a step. `ready`: it has its batches.
  StepVote vote(bool ready) const;
  // Takes in the votes of all ranks. False: some rank had no batch, so this was not a step and
  // nothing was updated.
  bool count(const StepResults& results);

  // Throws the error that ended the run, if there was one.
  void rethrow() const;

 private:
  Run& run_;
  std::optional<StopSignal> stop_;
  std::exception_ptr failure_;
  bool known_to_all_ = false;
};

}  // namespace lathe
