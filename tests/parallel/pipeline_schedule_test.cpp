// The step as data: each action occurs once, no stage starves, and no more micro-steps are in
// flight than the memory allows.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "src/parallel/schedule.h"

namespace lathe::testing {
namespace {

TEST(OneForwardOneBackward, OfOneStageIsTheLoopOverMicroSteps) {
  const std::vector<Action> expected{{Action::forward, 0}, {Action::backward, 0},
                                     {Action::forward, 1}, {Action::backward, 1},
                                     {Action::forward, 2}, {Action::backward, 2}};
  EXPECT_EQ(one_forward_one_backward(0, 1, 3), expected);
  EXPECT_EQ(most_in_flight(expected), 1);
}

TEST(OneForwardOneBackward, OfTwoStagesOverlaps) {
  const std::vector<Action> first{{Action::forward, 0},  {Action::forward, 1},
                                  {Action::backward, 0}, {Action::forward, 2},
                                  {Action::backward, 1}, {Action::backward, 2}};
  EXPECT_EQ(one_forward_one_backward(0, 2, 3), first);
  EXPECT_EQ(one_forward_one_backward(1, 2, 3), one_forward_one_backward(0, 1, 3));
}

// A forward needs that of the previous stage, a backward that of the next stage. Each takes one
// time slot. All stages are done after 2 (M + S - 1) slots.
TEST(OneForwardOneBackward, RunsWithoutStarvingAndInTheKnownTime) {
  for (const int64_t stages : {1, 2, 3, 4, 8, 16}) {
    for (const int64_t micro_steps : {1, 2, 3, 8, 16, 64}) {
      SCOPED_TRACE(::testing::Message() << stages << " stages, " << micro_steps << " micro-steps");
      std::vector<std::vector<Action>> all;
      for (int64_t s = 0; s < stages; ++s) {
        all.push_back(one_forward_one_backward(s, stages, micro_steps));
        EXPECT_EQ(most_in_flight(all.back()), std::min(stages - s, micro_steps));
      }
      using Done = std::set<std::pair<int64_t, int64_t>>;  // stage, micro-step
      Done forwards, backwards;
      std::vector<size_t> at(all.size());
      int64_t slots = 0;
      for (bool moved = true; moved; slots += moved) {
        Done more_forwards, more_backwards;
        for (int64_t s = 0; s < stages; ++s) {
          const auto i = static_cast<size_t>(s);
          if (at[i] == all[i].size()) continue;
          const auto [kind, m] = all[i][at[i]];
          const bool last = s + 1 == stages;
          if (kind == Action::forward) {
            if (s > 0 && !forwards.contains({s - 1, m})) continue;
            EXPECT_TRUE(more_forwards.insert({s, m}).second);
          } else {
            if (!(last ? forwards.contains({s, m}) : backwards.contains({s + 1, m}))) continue;
            EXPECT_TRUE(more_backwards.insert({s, m}).second);
          }
          ++at[i];
        }
        moved = !more_forwards.empty() || !more_backwards.empty();
        forwards.merge(more_forwards);
        backwards.merge(more_backwards);
      }
      EXPECT_EQ(static_cast<int64_t>(forwards.size()), stages * micro_steps);
      EXPECT_EQ(static_cast<int64_t>(backwards.size()), stages * micro_steps);
      EXPECT_EQ(slots, 2 * (micro_steps + stages - 1));
    }
  }
}

}  // namespace
}  // namespace lathe::testing
