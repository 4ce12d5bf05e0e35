// Stopping a run from outside: SIGTERM, SIGINT, SIGUSR1 and, from a terminal that is gone, SIGHUP
// ask for a save and an end at the next step boundary.
#pragma once

#include <csignal>
#include <iterator>
#include <string_view>

namespace lathe {

// Writing to a pipe that nobody reads, or beyond the limit of a file's size, is an error of the
// call from now on (EPIPE, EFBIG) and no longer a signal that ends the program.
void ignore_write_signals();

// While it lives these signals only leave a note; then the former handlers are back. A SIGHUP that
// is ignored (nohup) stays so. A second SIGINT ends the program at once, as if there were no
// handler. At most one at a time.
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
  static constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
  struct sigaction former_[std::size(kSignals)];
};

}  // namespace lathe
