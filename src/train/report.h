// What a run prints and writes: the banner, a line a step, metrics.jsonl, samples.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "src/comm/world.h"
#include "src/io/console.h"
#include "src/io/metrics.h"
#include "src/train/run.h"

namespace lathe {

// Configuration, parameter counts, device and memory plan, before anything runs.
// All ranks call it together; rank 0 prints.
void print_setup(const Setup& setup, const Device& device, const World& world, const Mesh& mesh);

// Only rank 0 prints and writes.
class Report {
 public:
  explicit Report(Run& run);

  // As soon as the results of the step in `slot` are here. Its time counts from the report of the
  // previous step, or from its own beginning if none was under way.
  void step(int64_t steps_done, const StepResults& results, int slot);
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
  bool tells() const { return run_.mesh().leads(); }
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
