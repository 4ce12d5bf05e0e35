// --trace FILE: what one training step did and when, for chrome://tracing or ui.perfetto.dev: a row
// for each line (device, communication) of each rank.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/observed_ops.h"
#include "src/io/file.h"
#include "src/report.h"
#include "src/run.h"

namespace lathe {

// A table of operations that marks where each begins and ends.
class TracingOps final : public ObservedOps {
 public:
  TracingOps(const Ops& real, Device& device, int first_mark)
      : ObservedOps(real), device_(device), first_mark_(first_mark) {}

  void clear() { names_.clear(); }
  // Operation i lies between the marks first_mark + 2 i and the one behind it.
  const std::vector<std::string_view>& names() const { return names_; }
  int first_mark() const { return first_mark_; }

 protected:
  bool before(const Call& call) const override {
    device_.mark(first_mark_ + 2 * static_cast<int>(names_.size()));
    names_.push_back(call.name);
    return true;
  }
  void after(const Call&) const override {
    device_.mark(first_mark_ + 2 * static_cast<int>(names_.size()) - 1);
  }

 private:
  Device& device_;
  int first_mark_;
  mutable std::vector<std::string_view> names_;
};

// The fourth step of a run is traced: by then matrix products are tuned, and the third has been run
// with the marks, so that a device that records steps has recorded the fourth as any other.
class StepTrace {
 public:
  // Does nothing where `file` is empty, or where the run ends before that step, which is said.
  // UserError where it cannot be written.
  StepTrace(Run& run, const std::string& file);

  // Before a step is enqueued, and the key that it is to be recorded under.
  void begin(int64_t step);
  int key(int otherwise) const { return tracing_ ? kKey : otherwise; }
  // When the results of `step` are here; all ranks. Rank 0 writes the file.
  void end(int64_t step, const StepClock& clock);

  static constexpr int kKey = 100;  // beside the loop's own

 private:
  std::string events(const StepClock& clock) const;

  Run& run_;
  const Ops& plain_;
  TracingOps ops_;
  int64_t traced_step_;             // -1: none
  std::optional<AtomicFile> file_;  // rank 0's
  bool tracing_ = false;
};

}  // namespace lathe
