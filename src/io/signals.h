// Stopping a run from outside: SIGTERM, SIGINT, SIGUSR1 and, when the terminal is gone, SIGHUP
// request a save and an end at the next step boundary.
#pragma once

#include <csignal>
#include <iterator>
#include <string_view>

namespace lathe {

// From now on, writing to a pipe without a reader or beyond the file size limit fails with EPIPE or
// EFBIG instead of ending the program with a signal.
void ignore_write_signals();

// While it lives, these signals only set a flag; its destructor restores the previous handlers. An
// ignored SIGHUP (nohup) stays ignored. A second SIGINT ends the program at once, as if there were
// no handler. At most one may exist at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Whether a signal came, and the first that did (0: none). Cheap; any thread may call it.
  bool requested() const { return signal() != 0; }
  int signal() const;
  // "SIGTERM"; "" if none came.
  std::string_view name() const;

 private:
  static constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
  struct sigaction former_[std::size(kSignals)];
};

}  // namespace lathe
