// Why and when a run ends before its last step: it was asked to, or something failed that leaves
// the weights whole. Then all ranks save together what is done, and after that the error is thrown.
#pragma once

#include <exception>
#include <optional>

#include "src/io/signals.h"
#include "src/train/run.h"

namespace lathe {

class Ending {
 public:
  // `signals`: they only leave a note from here on (StopSignal).
  Ending(Run& run, bool signals);

  // Whether body() has been done. An error in it is kept, the first of several, and the run is to
  // end.
  template <typename Body>
  bool tried(const Body& body) {
    try {
      body();
      return true;
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
      return false;
    }
  }

  // This rank is to end the run.
  bool wanted() const { return failure_ != nullptr || (stop_ && stop_->requested()); }
  // The run ends here, on all ranks alike: one rank ends at once, several when all know of it.
  bool agreed() const { return run_.mesh().ranks() > 1 ? known_to_all_ : wanted(); }
  // In the middle of something long that has no step's results: the ranks tell each other. All
  // ranks call it together.
  bool ask_all();

  // What this rank says with a step, `ready`: it has its batches.
  StepVote vote(bool ready) const;
  // What all ranks have said. False: some rank had no batch, so it is no step, and nothing was
  // updated.
  bool count(const StepResults& results);

  // Throws the error that ended the run, if one did.
  void rethrow() const;

 private:
  Run& run_;
  std::optional<StopSignal> stop_;
  std::exception_ptr failure_;
  bool known_to_all_ = false;
};

}  // namespace lathe
