// What a run tells: the banner, a line a step, metrics.jsonl, samples; and the clock behind it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

#include "src/io/console.h"
#include "src/io/metrics.h"
#include "src/run.h"

namespace lathe {

enum class Phase { forward, backward, optimizer, other };

// Where the time of one step goes. The fused head computes its backward together with the loss, so
// it counts as backward.
class StepClock {
 public:
  StepClock() : since_(Clock::now()) {}
  void start(Phase phase);
  double milliseconds(Phase phase) const { return spent_[static_cast<int>(phase)]; }
  double total() const;  // milliseconds since construction, up to the last start()

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point since_;
  Phase phase_ = Phase::other;
  std::array<double, 4> spent_{};
};

// Configuration, parameter counts, device and memory plan, before anything runs.
void print_setup(const Setup& setup, const Device& device);

class Report {
 public:
  explicit Report(Run& run);

  void step(int64_t steps_done, const StepResults& results, double lr, const StepClock& clock);
  void validation(int64_t steps_done, double loss);
  void sample(Run& run);
  // No step that a checkpoint has done may be missing from metrics.jsonl, even if the power fails.
  void before_save();
  // The last word: where the run is, and with --benchmark the median step.
  void finish(bool stopped);

 private:
  const Run& run_;
  double flops_per_step_, peak_flops_;
  std::optional<MetricsWriter> metrics_;
  Console console_;
  std::vector<double> step_ms_;
};

}  // namespace lathe
