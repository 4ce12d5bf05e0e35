// How a thread waits for a device or for other processes: it polls a few times, then yields, then
// sleeps briefly between polls, so that it does not take a core from threads that compute.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace lathe {

// Measures how long something has been waiting, if called at least once a second. If the process
// itself was paused (a debugger, a suspended job), the pause counts as one second.
class Patience {
 public:
  // Seconds since the first call.
  double waited() {
    const Clock::time_point now = Clock::now();
    if (begun_) seconds_ += std::min(std::chrono::duration<double>(now - last_).count(), 1.0);
    begun_ = true;
    last_ = now;
    return seconds_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool begun_ = false;
  double seconds_ = 0;
  Clock::time_point last_;
};

class Backoff {
 public:
  explicit Backoff(double timeout_seconds) : timeout_seconds_(timeout_seconds) {}

  void moved() {
    idle_ = 0;
    patience_ = {};
  }

  // Waits a little. False if nothing has moved for longer than the timeout.
  bool idle() {
    constexpr int kSpins = 16, kYields = 64;
    if (++idle_ <= kSpins) return true;
    if (idle_ <= kSpins + kYields) {
      sched_yield();
      return true;
    }
    // 5 us at first, up to 50 us.
    std::this_thread::sleep_for(std::chrono::microseconds(std::min(5 + (idle_ - kSpins) / 16, 50)));
    return patience_.waited() < timeout_seconds_;
  }

 private:
  double timeout_seconds_;
  Patience patience_;
  int idle_ = 0;
};

}  // namespace lathe
