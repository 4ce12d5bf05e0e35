// What a run tells: the banner, a line a step, metrics.jsonl, samples; and the clock behind it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "src/io/console.h"
#include "src/io/metrics.h"
#include "src/parallel/world.h"
#include "src/run.h"

namespace lathe {

enum class Phase { forward, backward, optimizer, end };
std::string_view name_of(Phase phase);

// Where the time of one step goes, by the device's own clock: marks among the step's operations,
// where each phase begins. The fused head computes its backward together with the loss, so it
// counts as backward. Two steps may be under way, so there are two sets of marks.
class StepClock {
 public:
  StepClock(Device& device, int64_t micro_steps, int set);
  // How many numbers all clocks of a run take, from 0 on.
  static int marks(int64_t micro_steps) {
    return static_cast<int>(DataParallel::kSets * (2 * micro_steps + 2));
  }

  // Before anything of the step is enqueued: the host's clock.
  void begin() { begun_ = std::chrono::steady_clock::now(); }
  // Enqueues a mark. Micro-step m has a forward and a backward phase, the step one of the others.
  // A profiler is told of the phase, too.
  void start(Phase phase, int64_t micro_step = 0);

  int first_mark() const { return number_of(Phase::forward, 0); }
  // The phases of the step in their order, from mark to mark.
  struct Part {
    Phase phase;
    int from, to;
  };
  std::vector<Part> parts() const;
  int set() const { return set_; }

  // Once the step's results are here.
  double milliseconds(Phase phase) const;
  std::chrono::steady_clock::time_point begun() const { return begun_; }

 private:
  int number_of(Phase phase, int64_t micro_step) const;

  Device& device_;
  int64_t micro_steps_;
  int set_;
  std::chrono::steady_clock::time_point begun_;
};

// Configuration, parameter counts, device and memory plan, before anything runs.
// All ranks call it together; rank 0 prints.
void print_setup(const Setup& setup, const Device& device, const World& world,
                 Communicator& communicator);

// Rank 0 tells and writes; of the others' Reports nothing is seen.
class Report {
 public:
  explicit Report(Run& run);

  // As soon as the results are here. The step took the time since the one before it was told, or
  // since it began where there was none under way.
  void step(int64_t steps_done, const StepResults& results, double lr, const StepClock& clock);
  void validation(int64_t steps_done, double loss);
  // `stop` may end it before its last token; then nothing is shown.
  void sample(Run& run, const std::function<bool()>& stop);
  // No step that a checkpoint has done may be missing from metrics.jsonl, even if the power fails.
  void before_save();
  // A checkpoint that was due is not written.
  void save_left_out(int64_t steps_done, int64_t bad_steps);
  // All ranks together: how long the steps since the last call took them, without the waiting for
  // each other. Nothing with one rank.
  void spread();
  // The last word: where the run is, and with --benchmark the median step.
  void finish(bool stopped);

 private:
  bool tells() const { return run_.rank() == 0; }
  void write_config() const;

  const Run& run_;
  double flops_per_step_, peak_flops_;
  std::optional<MetricsWriter> metrics_;
  Console console_;
  std::chrono::steady_clock::time_point told_{};  // when step() was called last
  std::vector<double> step_ms_;
  std::vector<double> busy_ms_;  // of the steps since spread() was called
};

}  // namespace lathe
