// --trace FILE: a timeline of one training step for chrome://tracing or ui.perfetto.dev, with rows
// for the device, the phases and the communication of each rank. Operations and their parts carry
// their costs, so that profiling/roofline.py can compare their times with the device's peak.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/observed_ops.h"
#include "src/io/file.h"
#include "src/train/run.h"

namespace lathe {

// A table of operations that marks when each operation begins and ends, and when each part begins.
class TracingOps final : public ObservedOps, public PartObserver {
 public:
  TracingOps(const Ops& real, Device& device) : ObservedOps(real), device_(device) {}

  // An operation, or a part of the operation before it. It lies between two marks.
  struct Interval {
    std::string_view name;
    Shape sizes;
    OpCost cost;
    int64_t layer = kNoLayer;
    bool part = false;
    int from = 0, to = 0;
  };
  const std::vector<Interval>& intervals() const { return intervals_; }
  void clear();

  // Each part adds a mark: on a GPU an event in the recording of the step (about a microsecond).
  // After this many parts, operations are not split any more.
  static constexpr size_t kMostParts = 2000;

  void enter_layer(int64_t layer) const override { layer_ = layer; }
  void part(std::string_view name, const Shape& sizes, const OpCost& cost) override;

 protected:
  bool before(const Call& call) const override;
  void after(const Call& call) const override;

 private:
  int mark() const;

  Device& device_;
  mutable std::vector<int> marks_;  // taken from the device
  mutable size_t marked_ = 0;       // of these, used since clear()
  mutable std::vector<Interval> intervals_;
  mutable int64_t layer_ = kNoLayer;
  mutable size_t parts_ = 0;        // of all operations
  mutable size_t operation_ = 0;    // the current one
  mutable bool splitting_ = false;  // the current one
};

// Traces the fourth step of a run. By then matrix products are tuned, and the third step has
// already run with the marks, so a device that records steps replays the fourth like any other.
class StepTrace {
 public:
  // Does nothing if `file` is empty. If the run ends before the fourth step, prints that and does
  // nothing. UserError if the file cannot be written.
  StepTrace(Run& run, const std::string& file);
  ~StepTrace() { run_.trainer.device.observe_parts(nullptr); }
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  // Call it before a step is enqueued.
  void begin(int64_t step);
  // The key under which the step is recorded.
  int key(int otherwise) const {
    return tracing_ ? static_cast<int>(Trainer::kTracedStep) : otherwise;
  }
  // Call it when the results of `step`, which used `slot`, have arrived. Collective; rank 0 writes
  // the file.
  void end(int64_t step, int slot);

 private:
  std::string events(int slot) const;
  std::string about() const;

  Run& run_;
  const Ops& plain_;
  TracingOps ops_;
  int64_t traced_step_;             // -1: none
  std::optional<AtomicFile> file_;  // rank 0's
  bool tracing_ = false;
};

}  // namespace lathe
