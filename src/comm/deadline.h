// A moment until which one waits.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lathe {

class Deadline {
 public:
  // From now on. Of more than 30 years only these count: the clock's numbers end.
  explicit Deadline(double seconds)
      : end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                std::chrono::duration<double>(std::min(seconds, 1e9)))) {}

  bool passed() const { return Clock::now() >= end_; }
  // For poll(2): at most a second, so that it is looked at again.
  int milliseconds() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000));
  }
  // So many seconds from now, or this deadline if that is sooner.
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
