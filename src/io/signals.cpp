#include "src/io/signals.h"

#include <atomic>
#include <cerrno>

#include "kernels/device/error.h"

namespace lathe {

namespace {

// A signal handler can leave its result only in a global variable.
std::atomic<bool> installed{false};
std::atomic<int> first_signal{0};
std::atomic<int> interrupts{0};
static_assert(std::atomic<int>::is_always_lock_free, "or it is not safe in a handler");

extern "C" void lathe_note_stop_signal(int signal) {
  const int kept_errno = errno;
  int none = 0;
  first_signal.compare_exchange_strong(none, signal);
  if (signal == SIGINT && interrupts.fetch_add(1) > 0) {
    // With the default action it is delivered as soon as this handler returns.
    std::signal(SIGINT, SIG_DFL);
    ::raise(SIGINT);
  }
  errno = kept_errno;
}

}  // namespace

void ignore_write_signals() {
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
}

StopSignal::StopSignal() {
  LATHE_CHECK(!installed.exchange(true), "there is a StopSignal already");
  first_signal = 0;
  interrupts = 0;
  struct sigaction action {};
  action.sa_handler = lathe_note_stop_signal;
  action.sa_flags = SA_RESTART;  // resume interrupted reads and writes
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    ::sigaction(kSignals[i], nullptr, &former_[i]);
    const bool ignored =
        (former_[i].sa_flags & SA_SIGINFO) == 0 && former_[i].sa_handler == SIG_IGN;
    if (kSignals[i] != SIGHUP || !ignored) ::sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  for (size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &former_[i], nullptr);
  installed = false;
}

int StopSignal::signal() const {
  return first_signal.load(std::memory_order_relaxed);
}

std::string_view StopSignal::name() const {
  switch (signal()) {
    case 0:
      return "";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "?";
  }
}

}  // namespace lathe
