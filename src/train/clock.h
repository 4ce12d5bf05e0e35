// Where the time of a step goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"

namespace lathe {

enum class Phase { forward, backward, optimizer, end };
std::string_view name_of(Phase phase);

// The phases of one step by the device's own clock: marks among the step's operations, one where
// each phase begins. The fused head computes its backward together with the loss, so it counts as
// backward.
class StepClock {
 public:
  StepClock(Device& device, int64_t micro_steps);

  // Before anything of the step is enqueued: the host's clock.
  void begin() { begun_ = std::chrono::steady_clock::now(); }
  // Enqueues a mark. Micro-step m has a forward and a backward phase, the step one of the others.
  // Also names the phase for a profiler.
  void start(Phase phase, int64_t micro_step = 0);

  int first_mark() const { return number_of(Phase::forward, 0); }
  // The phases of the step in their order, from mark to mark.
  struct Part {
    Phase phase;
    int from, to;
  };
  std::vector<Part> parts() const;

  // Once the step's results are here.
  double milliseconds(Phase phase) const;
  std::chrono::steady_clock::time_point begun() const { return begun_; }

 private:
  int number_of(Phase phase, int64_t micro_step) const;

  Device& device_;
  int64_t micro_steps_;
  int first_mark_;
  std::chrono::steady_clock::time_point begun_;
};

}  // namespace lathe
