// How a thread waits for other ranks: it looks again at once a few times, then gives way to other
// threads, then sleeps a little in between, so that it takes no core from those who compute.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace lathe {

class Backoff {
 public:
  explicit Backoff(double timeout_seconds) : timeout_(timeout_seconds) {}

  void moved() { idle_ = 0; }

  // Waits a little. False where nothing has moved for longer than the timeout. Of a pause of this
  // process (a debugger, a suspended job) only a second counts.
  bool idle() {
    constexpr int kSpins = 16, kYields = 64;
    if (++idle_ <= kSpins) return true;
    if (idle_ <= kSpins + kYields) {
      sched_yield();
      waited_ = Seconds(0);
      last_ = Clock::now();
      return true;
    }
    // 5 us at first, 50 in the end.
    std::this_thread::sleep_for(std::chrono::microseconds(std::min(5 + (idle_ - kSpins) / 16, 50)));
    const Clock::time_point now = Clock::now();
    waited_ += std::min(Seconds(now - last_), Seconds(1));
    last_ = now;
    return waited_ < timeout_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  Seconds timeout_, waited_{0};
  Clock::time_point last_;
  int idle_ = 0;
};

}  // namespace lathe
