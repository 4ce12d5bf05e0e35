// Tables of operations that watch another table: the model runs against them unchanged.
// RecordingOps computes nothing and adds up what a step needs. The profiling tools derive a table
// that times each call.
#pragma once

#include <algorithm>
#include <string_view>

#include "kernels/ops.h"

namespace lathe {

class ObservedOps : public ImplementsOps<ObservedOps> {
 public:
  explicit ObservedOps(const Ops& real) : real_(real) {}

  DType dtype() const override { return real_.dtype(); }

  template <typename Args>
  void call(const Args& args, const Tensor& workspace) const {
    const Call seen{Args::kName, args.sizes(), args.cost(), real_.workspace_bytes(args)};
    if (!before(seen)) return;
    real_.run(args, workspace);
    after(seen);
  }
  template <typename Args>
  size_t bytes(const Args& args) const {
    return real_.workspace_bytes(args);
  }

 protected:
  struct Call {
    std::string_view name;
    Shape sizes;
    OpCost cost;
    size_t workspace = 0;  // bytes that the operation asks for
  };
  // The call runs if before() returns true; after() is called when it has run.
  virtual bool before(const Call& call) const = 0;
  virtual void after(const Call&) const {}

 private:
  const Ops& real_;
};

class RecordingOps : public ObservedOps {
 public:
  using ObservedOps::ObservedOps;
  size_t workspace() const { return workspace_; }  // bytes: the most that one call asked for
  const OpCost& total() const { return total_; }

 protected:
  bool before(const Call& call) const override {
    workspace_ = std::max(workspace_, call.workspace);
    total_ += call.cost;
    return false;
  }

 private:
  mutable size_t workspace_ = 0;
  mutable OpCost total_;
};

}  // namespace lathe
