// Stopping a run from outside: SIGTERM, SIGINT and SIGUSR1 ask for a save and an end at the next
// step boundary.
#pragma once

#include <csignal>
#include <string_view>

namespace lathe {

// While it lives the three signals only leave a note; then the former handlers are back. A second
// SIGINT ends the program at once, as if there were no handler. At most one at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Whether a signal came, and the first that did (0: none). Cheap; may be asked by any thread.
  bool requested() const { return signal() != 0; }
  int signal() const;
  // "SIGTERM"; "" where none came.
  std::string_view name() const;

 private:
  static constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
  struct sigaction former_[3];
};

}  // namespace lathe
