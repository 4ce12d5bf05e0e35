// The step as data: what each stage of a pipeline does in a step, and when its results travel.
//
// The model is cut into chunks of layers; chunk c is on stage c modulo the number of stages. An
// action is one pass of a micro-step through a chunk. A result that another stage needs is a
// transfer: an activation goes down to the next chunk, its gradient up to the one before.
//
// All actions and transfers of a job have one total order, in which each comes after what it needs
// (PipelineSchedule::order). Every stage issues its part of them in that order. So at any time the
// first that is not done can be done, and nothing can wait in a circle, even if a send ends only
// when it is received and a device runs all it is given in one queue. That holds if a stage has as
// many buffers as sets() and gradients() say.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct Action {
  // A backward pass may be split: the gradient of the input first, because another stage waits for
  // it, and the gradients of the weights when there is time.
  enum Kind : uint8_t { forward, backward, backward_input, backward_weight };
  Kind kind = forward;
  int64_t micro_step = 0;
  int64_t chunk = 0;
  bool operator==(const Action&) const = default;
};

enum class ScheduleKind : uint8_t {
  // All forward passes, then all backward passes (Huang et al., 2019); these in the order of
  // micro-steps, so that gradients have the bits of the other schedules.
  gpipe,
  one_f_one_b,  // PipeDream, 2019; Megatron-LM, 2021
  interleaved,  // the same with several chunks a stage (Megatron-LM, 2021)
  zero_bubble,  // ZB-H1 (Qi et al., 2023): weight gradients fill the gaps
};
std::string_view name_of(ScheduleKind kind);

// Nominal durations of a pass through a chunk, all chunks alike, and of a transfer, in any unit. A
// whole backward pass takes both of its parts. The total order depends on them, so all ranks use
// the same. All but that of a transfer are more than 0.
struct StageCosts {
  double forward = 1, backward_input = 1, backward_weight = 1, transfer = 0.05;
  double of(Action::Kind kind) const;
};

// A line of the total order: an action, or the transfer of its result to chunk `to`.
struct PipelineEvent {
  Action action;
  int64_t to = -1;  // of a transfer; otherwise -1
  double start = 0, end = 0;
  bool is_transfer() const { return to >= 0; }
};

class PipelineSchedule {
 public:
  // UserError if this kind cannot do it: only `interleaved` has several chunks a stage, and it
  // needs a multiple of `stages` micro-steps.
  static PipelineSchedule make(ScheduleKind kind, int64_t stages, int64_t chunks_per_stage,
                               int64_t micro_steps, const StageCosts& costs = {});
  // Of the actions of each stage, in order. UserError that names the action if one is missing,
  // comes twice, is on another stage, or can never begin.
  PipelineSchedule(std::vector<std::vector<Action>> stages, int64_t chunks, int64_t micro_steps,
                   const StageCosts& costs = {});

  // The same as text: a line for each stage, an action as F, B, I (input) or W (weight), its
  // micro-step and, if a stage has several, its chunk: "F3.1".
  std::string to_string() const;
  static PipelineSchedule parse(std::string_view text, const StageCosts& costs = {});

  int64_t stages() const { return static_cast<int64_t>(actions_.size()); }
  int64_t chunks() const { return chunks_; }
  int64_t micro_steps() const { return micro_steps_; }
  int64_t stage_of(int64_t chunk) const { return chunk % stages(); }
  const std::vector<Action>& actions(int64_t stage) const {
    return actions_[static_cast<size_t>(stage)];
  }
  // The total order, by start time.
  const std::vector<PipelineEvent>& order() const { return order_; }
  // A stage's part of it: its actions, what it sends and what it receives.
  std::vector<PipelineEvent> order_of(int64_t stage) const;
  // The most that a stage holds at once. sets: micro-steps in chunks, from the receive, or else the
  // forward pass, to the last part of the backward pass. gradients: of activations, received and
  // not used or made and not sent.
  int64_t sets(int64_t stage) const;
  int64_t gradients(int64_t stage) const;
  double duration() const;
  // The share of all stages' time in which they do nothing.
  double bubble() const;

 private:
  void check() const;
  void find_order();
  [[noreturn]] void refuse_circle(const std::vector<size_t>& next) const;

  std::vector<std::vector<Action>> actions_;  // by stage
  int64_t chunks_, micro_steps_;
  StageCosts costs_;
  std::vector<PipelineEvent> order_;
};

// 1F1B: stage `stage` of `stages` fills the pipeline, then alternates one forward and one backward,
// then drains it. With one stage: forward 0, backward 0, forward 1, and so on.
std::vector<Action> one_forward_one_backward(int64_t stage, int64_t stages, int64_t micro_steps);

// The most micro-steps in flight at once, with forward done and backward not: that many Activations
// are needed by a stage that receives nothing.
int64_t most_in_flight(const std::vector<Action>& actions);

}  // namespace lathe
