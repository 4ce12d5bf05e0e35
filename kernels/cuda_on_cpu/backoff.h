// Waiting for other processes: yields to them at once, and sleeps if nothing happens for longer, so
// that waiting takes no core from those that work.
//
//   LATHE_CUDA_PATIENCE=SECONDS   how long nothing may move before a wait counts as a deadlock
//                                 (default: forever, as on a real device)
#pragma once

#include <sched.h>

#include <chrono>
#include <cstdlib>
#include <thread>

namespace lathe::cuda_on_cpu {

class Backoff {
 public:
  void moved() { idle_ = 0; }
  // False if it has been idle for longer than patience allows.
  bool idle() {
    constexpr int kYields = 200;
    constexpr std::chrono::microseconds kSleep(50);
    if (++idle_ <= kYields) {
      sched_yield();
      return true;
    }
    if (idle_ == kYields + 1) since_ = Clock::now();
    std::this_thread::sleep_for(kSleep);
    return patience().count() <= 0 || Clock::now() - since_ < patience();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static std::chrono::duration<double> patience() {
    const char* seconds = std::getenv("LATHE_CUDA_PATIENCE");
    return std::chrono::duration<double>(seconds ? std::atof(seconds) : 0);
  }
  int idle_ = 0;
  Clock::time_point since_;
};

}  // namespace lathe::cuda_on_cpu
