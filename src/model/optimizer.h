// AdamW with fp32 masters over flat parameters, and the state of the step in flight.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/parameter_store.h"

namespace lathe {

// Two small structs in device memory: the inputs and results that a step's operations share.
class StepState {
 public:
  StepState(Device& device, Arena& arena, int64_t micro_steps);

  // Gives the device the inputs of a step: one StepInputs for each micro-step.
  void begin(const Ops& ops, std::span<const StepInputs> inputs);
  // Reads the step's results; waits for the device.
  StepResults results() const;
  // The same without blocking: request_results enqueues the copy; collect_results waits for the
  // oldest requested copy, and for nothing after it. At most kReadBacks at a time.
  void request_results();
  StepResults collect_results();
  int64_t requested() const { return requested_ - collected_; }  // and not yet collected
  void set_results(const StepResults& results);

  const StepInputs* inputs(int64_t micro_step) const {
    return static_cast<const StepInputs*>(inputs_.data) + micro_step;
  }
  // Loss and stop votes in device_results(), fp64 [2]: the ranks sum both together.
  Tensor loss_and_votes() const;
  // The digits of device_results()->squares, int64, which the ranks sum.
  Tensor squares() const;
  StepResults* device_results() const { return static_cast<StepResults*>(results_.data); }

 private:
  Device& device_;
  Tensor inputs_, results_;  // uint8
  int64_t requested_ = 0, collected_ = 0;
};

struct OptimizerConfig {
  float weight_decay = 0.1f;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  double grad_clip = 1;              // 0: no clipping
  bool stochastic_rounding = false;  // of masters to bf16 weights
};

class Optimizer {
 public:
  // For what this rank owns. `states`: where masters and moments lie. If that is the host's memory,
  // AdamW reads and writes them over the bus. Masters that are the weights stay with these.
  Optimizer(const OptimizerConfig& config, ParameterStore& parameters, Device& device, Arena& arena,
            MemorySpace states = MemorySpace::device);

  // Norm, clipping and update, without the host in between. If the loss or the gradient norm is not
  // finite, weights and moments stay unchanged.
  void step(const Ops& ops, const StepState& state) const;

  const OptimizerConfig& config() const { return config_; }
  // The masters of owned()[part]: the weights themselves unless they are bf16.
  Tensor masters(size_t part) const;
  bool weights_are_masters() const { return !masters_; }
  // Moments, flat over what this rank owns.
  const Tensor& m() const { return m_; }
  const Tensor& v() const { return v_; }

 private:
  // The flat tensor that begins with `first`, a tensor of the range's first part.
  Tensor of_range(const UpdateRange& range, const Tensor& first) const;
  void sum_squares(const Ops& ops, const StepState& state) const;
  void update(const Ops& ops, const StepState& state) const;

  OptimizerConfig config_;
  ParameterStore& parameters_;
  Tensor masters_;  // flat; absent if the weights are the masters
  Tensor m_, v_;
  Tensor segments_;                      // OptimizerSegment, grouped by update
  std::vector<int64_t> segment_counts_;  // of each update
};

}  // namespace lathe
