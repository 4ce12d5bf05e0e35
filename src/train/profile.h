// --profile A:B: steps A to B-1 of a run between cudaProfilerStart and Stop, with named ranges for
// phases, layers, operations and their parts (docs/profiling.md).
#pragma once

#include <functional>
#include <string>

#include "kernels/observed_ops.h"
#include "src/train/run.h"

namespace lathe {

// A table of operations that tells the device's profiler what is enqueued: phases (StepClock's)
// hold layers, these operations, these parts.
class RangedOps final : public ObservedOps, public PartObserver {
 public:
  RangedOps(const Ops& real, Device& device) : ObservedOps(real), device_(device) {}

  void enter_layer(int64_t layer) const override;
  void part(std::string_view name, const Shape& sizes, const OpCost& cost) override;

 protected:
  bool before(const Call& call) const override;
  void after(const Call& call) const override;

 private:
  void push(std::string_view name, const Shape& sizes, const OpCost& cost) const;

  Device& device_;
  mutable int64_t layer_ = kNoLayer;
  mutable bool in_part_ = false;
};

class StepProfile {
 public:
  // Does nothing if no steps were asked for, or if they are not this run's, which is said.
  explicit StepProfile(Run& run);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  // Around all that is enqueued for a step; all ranks.
  void begin(int64_t step);
  void end(int64_t step);
  // As Device::replay. A step that is profiled is not recorded: a recording's kernels lie in no
  // range.
  void replay(int key, const std::function<void()>& body);

 private:
  void stop();

  Run& run_;
  const Ops& plain_;
  RangedOps ops_;
  int64_t first_, last_;  // steps; none if last_ < first_
  bool profiling_ = false;
};

}  // namespace lathe
