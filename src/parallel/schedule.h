// The step as data: the actions of a pipeline stage in one step, in order. With one stage, the
// whole model, they are forward 0, backward 0, forward 1, and so on.
#pragma once

#include <cstdint>
#include <vector>

namespace lathe {

struct Action {
  enum Kind : uint8_t { forward, backward };
  Kind kind = forward;
  int64_t micro_step = 0;
  bool operator==(const Action&) const = default;
};

// 1F1B (Narayanan et al., "PipeDream", 2019; Megatron-LM, 2021): stage `stage` of `stages` fills
// the pipeline, then alternates one forward and one backward, then drains it.
std::vector<Action> one_forward_one_backward(int64_t stage, int64_t stages, int64_t micro_steps);

// The most micro-steps in flight at once, with forward done and backward not: that many Activations
// are needed.
int64_t most_in_flight(const std::vector<Action>& actions);

}  // namespace lathe
