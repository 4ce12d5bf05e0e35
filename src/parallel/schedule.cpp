#include "src/parallel/schedule.h"

#include <algorithm>

namespace lathe {

std::vector<Action> one_forward_one_backward(int64_t stage, int64_t stages, int64_t micro_steps) {
  const int64_t ahead = std::min(stages - stage - 1, micro_steps);
  std::vector<Action> actions;
  for (int64_t m = 0; m < ahead; ++m) actions.push_back({Action::forward, m});
  for (int64_t m = 0; m < micro_steps; ++m) {
    if (ahead + m < micro_steps) actions.push_back({Action::forward, ahead + m});
    actions.push_back({Action::backward, m});
  }
  return actions;
}

int64_t most_in_flight(const std::vector<Action>& actions) {
  int64_t now = 0, most = 0;
  for (const Action& action : actions)
    most = std::max(most, now += action.kind == Action::forward ? 1 : -1);
  return most;
}

}  // namespace lathe
