// --profile A:B shows steps A to B-1 to a profiler (cudaProfilerStart and Stop), with named ranges
// for phases, layers, operations and their parts (docs/profiling.md).
#pragma once

#include <functional>
#include <string>

#include "kernels/observed_ops.h"
#include "src/train/run.h"

namespace lathe {

// A table of operations that names for the device's profiler what is enqueued. Ranges nest: phases
// (from StepClock), layers, operations, parts.
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
  // Does nothing without --profile. If this run cannot profile those steps, prints that and does
  // nothing.
  explicit StepProfile(Run& run);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  // Call these before and after enqueueing a step, on all ranks.
  void begin(int64_t step);
  void end(int64_t step);
  // Like Device::replay, but a profiled step is not recorded: the kernels of a recording are in no
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
