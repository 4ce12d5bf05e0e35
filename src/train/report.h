// What a run prints and writes: the banner, a line per step, metrics.jsonl, samples.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "src/comm/world.h"
#include "src/io/console.h"
#include "src/io/metrics.h"
#include "src/train/ending.h"
#include "src/train/run.h"

namespace lathe {

// Prints configuration, parameter counts, device and memory plan, before anything runs. Collective;
// rank 0 prints.
void print_setup(const Setup& setup, Device& device, const World& world, const Mesh& mesh);

// Only rank 0 prints and writes.
class Report {
 public:
  explicit Report(Run& run);

  // Call it as soon as the results of the step in `slot` have arrived. The step's time counts from
  // the report of the previous step, or from its own beginning if no step was in flight.
  void step(int64_t steps_done, const StepResults& results, int slot);
  void validation(int64_t steps_done, double loss);
  // If the run is ending before the last token, nothing is printed.
  void sample(Run& run, Ending& ending);
  // Flushes metrics.jsonl to disk: even after a power failure it must have every step of the
  // checkpoint.
  void before_save();
  // Reports that a checkpoint was due but not written.
  void save_skipped(int64_t steps_done, int64_t bad_steps);
  // Prints the shortest and longest time that ranks took per step since the last call, without
  // their waits for each other. Collective. Nothing with one rank.
  void spread();
  // Prints why the run ended, and with --benchmark the median step.
  void finish(bool stopped);

 private:
  bool prints() const { return run_.mesh().leads(); }
  void write_config() const;

  const Run& run_;
  double flops_per_step_, peak_flops_;
  std::optional<MetricsWriter> metrics_;
  Console console_;
  std::chrono::steady_clock::time_point reported_{};  // when step() was called last
  std::vector<double> step_ms_;
  std::vector<double> busy_ms_;  // of the steps since the last spread()
};

}  // namespace lathe
