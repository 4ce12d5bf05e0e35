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

// Times the phases of one step with the device's clock: a mark among the step's operations starts
// each phase. The fused head computes its backward together with the loss, so it counts as
// backward.
class StepClock {
 public:
  StepClock(Device& device, int64_t micro_steps);

  // Notes the host's time. Call it before anything of the step is enqueued.
  void begin() { begun_ = std::chrono::steady_clock::now(); }
  // Enqueues a mark and names the phase for a profiler. Each micro-step has a forward and a
  // backward phase; the other phases occur once a step.
  void start(Phase phase, int64_t micro_step = 0);

  int first_mark() const { return number_of(Phase::forward, 0); }
  // The phases of the step in order. Each lasts from one mark to another.
  struct Part {
    Phase phase;
    int from, to;
  };
  std::vector<Part> parts() const;

  // Call it after the step's results have arrived.
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
