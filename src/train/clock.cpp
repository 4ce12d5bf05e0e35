#include "src/train/clock.h"

#include "kernels/ops.h"

namespace lathe {

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::optimizer:
      return "optimizer";
    case Phase::end:
      break;
  }
  return "end";
}

StepClock::StepClock(Device& device, int64_t micro_steps)
    : device_(device),
      micro_steps_(micro_steps),
      first_mark_(device.take_marks(static_cast<int>(2 * micro_steps + 2))) {}

// Marks are numbered in the order of execution: forward and backward of each micro-step, optimizer,
// end.
int StepClock::number_of(Phase phase, int64_t micro_step) const {
  const auto number = [this](int64_t place) { return first_mark_ + static_cast<int>(place); };
  switch (phase) {
    case Phase::forward:
      return number(2 * micro_step);
    case Phase::backward:
      return number(2 * micro_step + 1);
    case Phase::optimizer:
      return number(2 * micro_steps_);
    case Phase::end:
      break;
  }
  return number(2 * micro_steps_ + 1);
}

void StepClock::start(Phase phase, int64_t micro_step) {
  const int mark = number_of(phase, micro_step);
  if (mark != first_mark()) device_.pop_range();
  device_.mark(mark);
  if (phase != Phase::end) device_.push_range(name_of(phase), {});
}

std::vector<StepClock::Part> StepClock::parts() const {
  std::vector<Part> parts;
  const auto add = [&](Phase phase, int64_t micro_step) {
    const int from = number_of(phase, micro_step);
    parts.push_back({phase, from, from + 1});
  };
  for (int64_t m = 0; m < micro_steps_; ++m) add(Phase::forward, m), add(Phase::backward, m);
  add(Phase::optimizer, 0);
  return parts;
}

double StepClock::milliseconds(Phase phase) const {
  const int64_t times = phase == Phase::optimizer ? 1 : micro_steps_;
  double sum = 0;
  for (int64_t m = 0; m < times; ++m) {  // each phase lasts until the next mark
    const int from = number_of(phase, m);
    sum += device_.milliseconds_between(from, from + 1);
  }
  return sum;
}

}  // namespace lathe
