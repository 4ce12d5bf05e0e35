// AdamW with fp32 masters over flat parameters, and the state of the step in flight.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/model/file_states.h"
#include "src/model/host_update.h"
#include "src/model/offload.h"
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

// What AdamW keeps of each element. Masters that are the weights are no states of their own.
enum class OptimizerState : uint8_t { masters, m, v };

class Optimizer {
 public:
  // For what this rank owns.
  Optimizer(const OptimizerConfig& config, ParameterStore& parameters, Device& device, Arena& arena,
            const Offload& offload = {});

  // Norm, clipping and update, without the host in between. If the loss or the gradient norm is not
  // finite, weights and moments stay unchanged.
  void step(const Ops& ops, const StepState& state);

  const OptimizerConfig& config() const { return config_; }
  bool weights_are_masters() const { return !has_masters_; }

  // The rest is for use outside of a step. Calls body(done, part) for parts of elements [begin,
  // begin + count) of a state, flat over what this rank owns, in order; `part` begins with element
  // begin + done, and is valid during the call. write() keeps what body writes into it.
  using Body = std::function<void(int64_t done, const Tensor& part)>;
  void read(OptimizerState which, int64_t begin, int64_t count, const Body& body);
  void write(OptimizerState which, int64_t begin, int64_t count, const Body& body);
  // The masters of owned()[part]: the weights themselves unless they are bf16. If they lie in a
  // file, reads them into the memory of the part's gradients, which are lost.
  Tensor masters(size_t part);
  // A state that lies in memory, flat over what this rank owns.
  const Tensor& m() const { return states_.m; }
  const Tensor& v() const { return states_.v; }

  // Reserves the file of the states, if they lie in one.
  void create_file();
  // Throws what has gone wrong in the host's part of a step: then the weights are wrong.
  void rethrow();
  const FileStates* file() const { return file_.get(); }
  const HostUpdate* on_host() const { return on_host_.get(); }

 private:
  // Elements that one AdamW updates, numbered as `local` of an OwnedPart, in one update range.
  struct Chunk {
    size_t range = 0;
    int64_t begin = 0, elements = 0;
    size_t first_segment = 0, segments = 0;
  };

  void cut_into_chunks(int64_t most);
  void visit(OptimizerState which, int64_t begin, int64_t count, bool write, const Body& body);
  // The flat tensor of a chunk, in the range that begins with `first`.
  Tensor of_chunk(const Chunk& chunk, const Tensor& first) const;
  StateTensors states_of(size_t chunk) const;
  AdamW adamw(size_t chunk, const StepState& state) const;
  void sum_squares(const Ops& ops, const StepState& state) const;

  OptimizerConfig config_;
  ParameterStore& parameters_;
  Device& device_;
  bool has_masters_ = false;
  std::vector<Chunk> chunks_;               // in the order of updates
  std::vector<OptimizerSegment> segments_;  // of all chunks
  Tensor segments_on_device_;               // the same, uint8
  StateTensors states_;                     // flat, if they lie in memory
  std::unique_ptr<FileStates> file_;        // or in a file
  std::unique_ptr<HostUpdate> on_host_;     // if the host updates
};

}  // namespace lathe
