// --trace FILE: what one training step did and when, for chrome://tracing or ui.perfetto.dev: a row
// for each line (device, communication) of each rank. Operations and their parts carry what they
// cost, so that profiling/roofline.py can hold their times against what the device can do.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/observed_ops.h"
#include "src/io/file.h"
#include "src/train/run.h"

namespace lathe {

// A table of operations that marks when each begins and ends, and when each of its parts begins.
class TracingOps final : public ObservedOps, public PartObserver {
 public:
  TracingOps(const Ops& real, Device& device) : ObservedOps(real), device_(device) {}

  // An operation, or a part of the operation before it; it lies between two marks.
  struct Stretch {
    std::string_view name;
    Shape sizes;
    OpCost cost;
    int64_t layer = kNoLayer;
    bool part = false;
    int from = 0, to = 0;
  };
  const std::vector<Stretch>& stretches() const { return stretches_; }
  void clear();

  // Each part is a mark, on a GPU an event in the recording of the step (about a microsecond). An
  // operation that begins after so many of them is not split.
  static constexpr size_t kMostParts = 2000;

  void enter_layer(int64_t layer) const override { layer_ = layer; }
  void part(std::string_view name, const Shape& sizes, const OpCost& cost) override;

 protected:
  bool before(const Call& call) const override;
  void after(const Call& call) const override;

 private:
  int mark() const;

  Device& device_;
  mutable std::vector<int> marks_;  // that it has taken of the device
  mutable size_t marked_ = 0;       // of these, since clear()
  mutable std::vector<Stretch> stretches_;
  mutable int64_t layer_ = kNoLayer;
  mutable size_t parts_ = 0;        // of all operations
  mutable size_t operation_ = 0;    // the one under way
  mutable bool splitting_ = false;  // the one under way
};

// The fourth step of a run is traced: by then matrix products are tuned, and the third has been run
// with the marks, so that a device that records steps has recorded the fourth as any other.
class StepTrace {
 public:
  // Does nothing if `file` is empty, or if the run ends before that step, which is said. UserError
  // if it cannot be written.
  StepTrace(Run& run, const std::string& file);
  ~StepTrace() { run_.trainer.device.observe_parts(nullptr); }
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  // Before a step is enqueued, and the key that it is to be recorded under.
  void begin(int64_t step);
  int key(int otherwise) const {
    return tracing_ ? static_cast<int>(Trainer::kTracedStep) : otherwise;
  }
  // When the results of `step`, which was in `slot`, are here; all ranks. Rank 0 writes the file.
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
