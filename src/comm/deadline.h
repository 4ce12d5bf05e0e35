// The time at which a wait must end.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lathe {

class Deadline {
 public:
  // Starts now. Capped at about 30 years, because the clock would overflow.
  explicit Deadline(double seconds)
      : end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                std::chrono::duration<double>(std::min(seconds, 1e9)))) {}

  bool passed() const { return Clock::now() >= end_; }
  // For poll(2): at most a second, so that the caller checks again.
  int milliseconds() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000));
  }
  // This many seconds from now, or this deadline if it is sooner.
  Deadline at_most(double seconds) const {
    Deadline result(seconds);
    result.end_ = std::min(result.end_, end_);
    return result;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point end_;
};

}  // namespace lathe
