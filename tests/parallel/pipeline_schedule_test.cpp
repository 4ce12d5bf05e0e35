// The step as data: each action occurs once, no stage starves, no more micro-steps are in flight
// than memory allows, and nothing can wait in a circle.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "kernels/device/error.h"
#include "src/parallel/schedule.h"
#include "src/parallel/stage_cut.h"

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
  const PipelineSchedule s = PipelineSchedule::make(ScheduleKind::one_f_one_b, 2, 1, 3);
  EXPECT_EQ(s.to_string(), "F0 F1 B0 F2 B1 B2\nF0 B0 F1 B1 F2 B2\n");
  EXPECT_EQ(most_in_flight(s.actions(0)), 2);
  EXPECT_EQ(most_in_flight(s.actions(1)), 1);
}

TEST(PipelineSchedule, IsWhatTheLiteratureDraws) {
  const auto text = [](ScheduleKind kind, int64_t stages, int64_t chunks, int64_t micro_steps) {
    return PipelineSchedule::make(kind, stages, chunks, micro_steps).to_string();
  };
  EXPECT_EQ(text(ScheduleKind::gpipe, 2, 1, 2), "F0 F1 B0 B1\nF0 F1 B0 B1\n");
  // Figure 3 of Qi et al., 2023, here for two stages.
  EXPECT_EQ(text(ScheduleKind::zero_bubble, 2, 1, 4),
            "F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3\nF0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3\n");
  // Figure 4 of Narayanan et al., 2021, here for two stages of two chunks and four micro-steps.
  EXPECT_EQ(text(ScheduleKind::interleaved, 2, 2, 4),
            "F0.0 F1.0 F0.2 F1.2 F2.0 B0.2 F3.0 B1.2 F2.2 B0.0 F3.2 B1.0 B2.2 B3.2 B2.0 B3.0\n"
            "F0.1 F1.1 F0.3 B0.3 F1.3 B1.3 F2.1 B0.1 F3.1 B1.1 F2.3 B2.3 F3.3 B3.3 B2.1 B3.1\n");
}

struct Case {
  ScheduleKind kind;
  int64_t stages, chunks, micro_steps;
};
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int64_t stages : {1, 2, 3, 4, 8, 16}) {
    for (const int64_t micro_steps : {1, 2, 3, 5, 8, 16, 64}) {
      for (const ScheduleKind kind :
           {ScheduleKind::gpipe, ScheduleKind::one_f_one_b, ScheduleKind::zero_bubble})
        all.push_back({kind, stages, 1, micro_steps});
      for (const int64_t chunks : {2, 3, 4}) {
        if (micro_steps % stages == 0)
          all.push_back({ScheduleKind::interleaved, stages, chunks, micro_steps});
      }
    }
  }
  return all;
}

void for_all(const std::function<void(const Case&, const StageCosts&)>& body) {
  for (const Case& c : cases()) {
    for (const StageCosts& costs :
         {StageCosts{}, StageCosts{1, 1, 1, 0}, StageCosts{1, 1.2, 0.7, 0.4}}) {
      SCOPED_TRACE(::testing::Message()
                   << name_of(c.kind) << ", " << c.stages << " stages, " << c.chunks << " chunks, "
                   << c.micro_steps << " micro-steps, transfers of " << costs.transfer);
      body(c, costs);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

bool is_backward(const Action& a) {
  return a.kind == Action::backward || a.kind == Action::backward_input;
}

// Each action and each transfer once, after what it needs, and in the order of its stage.
TEST(PipelineSchedule, HasOneTotalOrder) {
  for_all([](const Case& c, const StageCosts& costs) {
    const PipelineSchedule s =
        PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs);
    const int64_t chunks = c.stages * c.chunks;
    using Key = std::tuple<int64_t, int64_t, int>;            // chunk, micro-step, kind
    std::map<Key, double> done, there;                        // at what time
    std::map<std::pair<int64_t, bool>, double> line_free_at;  // of a stage, down or up
    std::vector<std::vector<Action>> stages(static_cast<size_t>(c.stages));
    double before = 0;
    for (const PipelineEvent& e : s.order()) {
      ASSERT_GE(e.start, before);
      before = e.start;
      const Action& a = e.action;
      const bool down = a.kind == Action::forward;
      const Key key{a.chunk, a.micro_step, a.kind};
      const auto after = [&](const std::map<Key, double>& what, const Key& needed) {
        const auto found = what.find(needed);
        return found != what.end() && e.start >= found->second;
      };
      if (e.is_transfer()) {
        ASSERT_TRUE(after(done, key));
        ASSERT_EQ(e.to, a.chunk + (down ? 1 : -1));
        ASSERT_EQ(e.end, e.start + costs.transfer);
        for (const int64_t chunk : {a.chunk, e.to}) {
          double& free_at = line_free_at[{s.stage_of(chunk), down}];
          ASSERT_GE(e.start, free_at);
          free_at = e.end;
        }
        ASSERT_TRUE(there.insert({Key{e.to, a.micro_step, down}, e.end}).second);
        continue;
      }
      const auto arrived = [&](int64_t from, bool is_down) {
        if (c.stages > 1) return after(there, {a.chunk, a.micro_step, is_down});
        const bool split = c.kind == ScheduleKind::zero_bubble;
        const int kind = is_down ? Action::forward
                         : split ? Action::backward_input
                                 : Action::backward;
        return after(done, {from, a.micro_step, kind});
      };
      if (down && a.chunk > 0) {
        ASSERT_TRUE(arrived(a.chunk - 1, true));
      }
      if (is_backward(a)) {
        ASSERT_TRUE(after(done, {a.chunk, a.micro_step, Action::forward}));
        if (a.chunk + 1 < chunks) {
          ASSERT_TRUE(arrived(a.chunk + 1, false));
        }
      }
      if (a.kind == Action::backward_weight) {
        ASSERT_TRUE(after(done, {a.chunk, a.micro_step, Action::backward_input}));
      }
      ASSERT_EQ(e.end, e.start + costs.of(a.kind));
      ASSERT_TRUE(done.insert({key, e.end}).second);
      stages[static_cast<size_t>(s.stage_of(a.chunk))].push_back(a);
    }
    const int64_t passes = c.kind == ScheduleKind::zero_bubble ? 3 : 2;
    EXPECT_EQ(static_cast<int64_t>(done.size()), passes * chunks * c.micro_steps);
    EXPECT_EQ(static_cast<int64_t>(there.size()),
              c.stages == 1 ? 0 : 2 * (chunks - 1) * c.micro_steps);
    for (int64_t i = 0; i < c.stages; ++i) EXPECT_EQ(stages[static_cast<size_t>(i)], s.actions(i));
  });
}

// Gradients are added in the order of micro-steps, whatever the schedule, so they have the same
// bits.
TEST(PipelineSchedule, EveryChunkGoesThroughMicroStepsInOrder) {
  for_all([](const Case& c, const StageCosts& costs) {
    const PipelineSchedule s =
        PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs);
    for (int64_t i = 0; i < c.stages; ++i) {
      std::map<std::pair<int64_t, int>, int64_t> next;
      for (const Action& a : s.actions(i)) EXPECT_EQ(a.micro_step, (next[{a.chunk, a.kind}]++));
    }
  });
}

// How far ranks get that each run one queue, in which a transfer ends only when both ends have
// come to it: true if to the end.
bool ends(const std::vector<std::vector<PipelineEvent>>& queues,
          const std::function<bool(const PipelineEvent&, const PipelineEvent&)>& same) {
  std::vector<size_t> at(queues.size());
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t a = 0; a < queues.size(); ++a) {
      if (at[a] == queues[a].size()) continue;
      const PipelineEvent& mine = queues[a][at[a]];
      if (!mine.is_transfer()) {
        ++at[a];
        moved = true;
        continue;
      }
      for (size_t b = a + 1; b < queues.size(); ++b) {
        if (at[b] == queues[b].size() || !same(mine, queues[b][at[b]])) continue;
        ++at[a], ++at[b];
        moved = true;
        break;
      }
    }
  }
  for (size_t i = 0; i < queues.size(); ++i)
    if (at[i] < queues[i].size()) return false;
  return true;
}

bool same_transfer(const PipelineEvent& a, const PipelineEvent& b) {
  return a.is_transfer() && b.is_transfer() && a.action == b.action && a.to == b.to;
}

TEST(PipelineSchedule, CannotWaitInACircle) {
  int64_t circles = 0, all = 0;
  for_all([&](const Case& c, const StageCosts& costs) {
    const PipelineSchedule s =
        PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs);
    std::vector<std::vector<PipelineEvent>> queues, naive(static_cast<size_t>(c.stages));
    for (int64_t i = 0; i < c.stages; ++i) {
      queues.push_back(s.order_of(i));
      // As one might write it: receive before the action that needs it, send after the one that
      // makes it.
      for (const Action& a : s.actions(i)) {
        const bool down = a.kind == Action::forward;
        const int64_t step = down ? 1 : -1, last = c.stages * c.chunks - 1;
        auto& queue = naive[static_cast<size_t>(i)];
        const int64_t from = a.chunk - step;
        if (a.kind != Action::backward_weight && from >= 0 && from <= last && c.stages > 1)
          queue.push_back({.action = {a.kind, a.micro_step, from}, .to = a.chunk});
        queue.push_back({.action = a});
        const int64_t to = a.chunk + step;
        if (a.kind != Action::backward_weight && to >= 0 && to <= last && c.stages > 1)
          queue.push_back({.action = a, .to = to});
      }
    }
    EXPECT_TRUE(ends(queues, same_transfer));
    if (c.stages == 1 || c.kind == ScheduleKind::gpipe || c.micro_steps == 1) return;
    ++all;
    circles += !ends(naive, same_transfer);
  });
  EXPECT_EQ(circles, all);  // so the order is needed
}

TEST(PipelineSchedule, HoldsNoMoreThanMemoryAllows) {
  for_all([](const Case& c, const StageCosts& costs) {
    const PipelineSchedule s =
        PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs);
    for (int64_t i = 0; i < c.stages; ++i) {
      // One more may arrive while the last is used.
      const int64_t more = i > 0, all = c.chunks * c.micro_steps;
      switch (c.kind) {
        case ScheduleKind::gpipe:
          EXPECT_EQ(s.sets(i), c.micro_steps);
          break;
        case ScheduleKind::one_f_one_b:
          EXPECT_GE(s.sets(i), std::min(c.stages - i, all));
          EXPECT_LE(s.sets(i), std::min(c.stages - i + more, all));
          break;
        case ScheduleKind::zero_bubble:
          EXPECT_GE(s.sets(i), std::min(c.stages, all));
          EXPECT_LE(s.sets(i), std::min(c.stages + more, all));
          break;
        case ScheduleKind::interleaved: {
          const int64_t ahead = 2 * (c.stages - i - 1) + (c.chunks - 1) * c.stages + 1;
          EXPECT_GE(s.sets(i), std::min(ahead, all));
          EXPECT_LE(s.sets(i), std::min(ahead + c.stages, all));
        }
      }
      EXPECT_GE(s.gradients(i), c.stages > 1);
      EXPECT_LE(s.gradients(i), 2 + c.chunks * c.micro_steps);
    }
  });
  // A receive, a pass that uses one gradient and makes the next, and a send.
  EXPECT_LE(PipelineSchedule::make(ScheduleKind::one_f_one_b, 8, 1, 64).gradients(3), 3);
}

TEST(PipelineSchedule, HasTheKnownBubbles) {
  const auto bubble = [](const Case& c, const StageCosts& costs) {
    return PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs).bubble();
  };
  const StageCosts costs{1, 1, 1, 0};
  for (const int64_t p : {2, 4, 8, 16}) {
    for (const int64_t m : {p, 2 * p, 4 * p, 8 * p}) {
      SCOPED_TRACE(::testing::Message() << p << " stages, " << m << " micro-steps");
      const auto fraction = [m](double idle, double work) {
        return idle / (static_cast<double>(m) * work + idle);
      };
      const auto idle = static_cast<double>(p - 1);
      EXPECT_NEAR(bubble({ScheduleKind::gpipe, p, 1, m}, costs), fraction(idle * 3, 3), 1e-9);
      EXPECT_NEAR(bubble({ScheduleKind::one_f_one_b, p, 1, m}, costs), fraction(idle * 3, 3), 1e-9);
      for (const int64_t v : {2, 4}) {
        const auto chunks = static_cast<double>(v);
        EXPECT_NEAR(bubble({ScheduleKind::interleaved, p, v, m}, costs),
                    fraction(idle * 3 / chunks, 3), 1e-9);
      }
      EXPECT_NEAR(bubble({ScheduleKind::zero_bubble, p, 1, m}, costs), fraction(idle, 3), 1e-9);
    }
  }
}

TEST(PipelineSchedule, IsReadAsItIsWritten) {
  for_all([](const Case& c, const StageCosts& costs) {
    const PipelineSchedule s =
        PipelineSchedule::make(c.kind, c.stages, c.chunks, c.micro_steps, costs);
    const PipelineSchedule again = PipelineSchedule::parse(s.to_string(), costs);
    EXPECT_EQ(again.to_string(), s.to_string());
    EXPECT_EQ(again.chunks(), s.chunks());
    EXPECT_EQ(again.micro_steps(), s.micro_steps());
    EXPECT_EQ(again.duration(), s.duration());
  });
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(PipelineSchedule, RefusesWhatCannotRun) {
  const auto parse = [](const std::string& text) {
    return refusal([&text] { PipelineSchedule::parse(text); });
  };
  EXPECT_EQ(parse("F0 X0\n"),
            "stage 0 of the schedule has 'X0', which is not an action such as F0, B3 or I2.1; "
            "correct it");
  for (const char* word : {"F", "F-0", "F0.", "F0.0x", "F9223372036854775807", "B0.99999999"})
    EXPECT_NE(parse(word).find("which is not an action"), std::string::npos) << word;
  EXPECT_EQ(parse("F0 B0 F0\n"), "the schedule has F0 on stage 0 twice; remove one");
  EXPECT_EQ(parse("F1 B1 F0 B0\n"),
            "the schedule has F0 on stage 0 after micro-step 1; keep micro-steps in order");
  EXPECT_EQ(parse("F0 B0\nF0\n"),
            "the schedule has micro-steps up to 0, so it needs F0 and either B0 or I0 and W0 of "
            "chunk 1, each once; correct it");
  EXPECT_EQ(parse("F0.0 B0.0 F0.1 B0.1\nF0.1 B0.1\n"),
            "the schedule has F0 on stage 0, but its chunk is on stage 1; correct it");
  EXPECT_EQ(parse("\nF0 B0\n\nB0 F0\n"),
            "the schedule has B0 on stage 1 before F0, which it needs; change their order");
  EXPECT_EQ(parse("F0 B0 F1 B1\nF0 F1 B0 B1\n"),
            "the stages of the schedule wait for each other, for ever, with B0 on stage 0, F1 on "
            "stage 1; change the order");
  EXPECT_EQ(parse(""), "the schedule is empty; write one");
  const auto make = [](ScheduleKind kind, int64_t stages, int64_t chunks, int64_t micro_steps) {
    return refusal([=] { PipelineSchedule::make(kind, stages, chunks, micro_steps); });
  };
  EXPECT_EQ(make(ScheduleKind::interleaved, 4, 2, 6),
            "--pp-schedule interleaved needs a multiple of 4 micro-steps (--pp), and there are 6: "
            "change --total-batch-size, or use 1f1b");
  EXPECT_EQ(make(ScheduleKind::interleaved, 4, 1, 8),
            "--pp-schedule interleaved needs --pp-chunks 2 or more: give it, or use 1f1b");
  EXPECT_EQ(
      make(ScheduleKind::gpipe, 4, 2, 8),
      "--pp-schedule gpipe allows one chunk a stage: remove --pp-chunks 2, or use interleaved");
  for (const StageCosts& costs :
       {StageCosts{0}, StageCosts{1, -1}, StageCosts{1, 1, NAN}, StageCosts{1, 1, 1, -0.1}})
    EXPECT_THROW(PipelineSchedule::make(ScheduleKind::gpipe, 2, 1, 2, costs), CheckError);
}

using Firsts = std::vector<int64_t>;

TEST(StageCut, BalancesCosts) {
  // The embeddings, twelve layers, and the head of GPT-2 124M, which costs 5.4 layers.
  std::vector<double> gpt2(14, 1.0);
  gpt2.front() = 0, gpt2.back() = 5.4;
  EXPECT_EQ(cut_by_cost(gpt2, 1), (Firsts{0}));
  EXPECT_EQ(cut_by_cost(gpt2, 2), (Firsts{0, 10}));        // 9 layers, and 3 with the head
  EXPECT_EQ(cut_by_cost(gpt2, 4), (Firsts{0, 5, 9, 13}));  // 4 each, and the head alone
  EXPECT_NEAR(balance_of(gpt2, cut_by_cost(gpt2, 4)), 17.4 / 4 / 5.4, 1e-12);
  EXPECT_EQ(cut_by_cost({1, 1, 1, 1, 1, 1, 1}, 3), (Firsts{0, 2, 4}));
  EXPECT_EQ(cut_by_cost({3, 0, 0, 1}, 4), (Firsts{0, 1, 2, 3}));
  EXPECT_EQ(balance_of({0, 0}, {0, 1}), 1);
}

// Against every cut.
TEST(StageCut, IsTheBestOfAll) {
  const std::vector<double> costs{0.3, 1, 1, 2.5, 1, 0.1, 4, 1, 1, 0.7};
  const auto units = static_cast<int64_t>(costs.size());
  for (int64_t parts = 1; parts <= units; ++parts) {
    double best = 0;
    Firsts firsts(1);
    const std::function<void(int64_t)> try_all = [&](int64_t next) {
      if (static_cast<int64_t>(firsts.size()) == parts) {
        best = std::max(best, balance_of(costs, firsts));
        return;
      }
      for (int64_t first = next; first < units; ++first) {
        firsts.push_back(first);
        try_all(first + 1);
        firsts.pop_back();
      }
    };
    try_all(1);
    EXPECT_NEAR(balance_of(costs, cut_by_cost(costs, parts)), best, 1e-12) << parts;
  }
}

}  // namespace
}  // namespace lathe::testing
