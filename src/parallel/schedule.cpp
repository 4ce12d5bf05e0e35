#include "src/parallel/schedule.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>

#include "kernels/device/error.h"

namespace lathe {

namespace {

constexpr std::string_view kLetters = "FBIW";  // by Action::Kind

std::string text_of(const Action& action, bool chunks) {
  const std::string text = fmt::format("{}{}", kLetters[action.kind], action.micro_step);
  return chunks ? fmt::format("{}.{}", text, action.chunk) : text;
}

bool is_backward(Action::Kind kind) {
  return kind == Action::backward || kind == Action::backward_input;
}

}  // namespace

std::string_view name_of(ScheduleKind kind) {
  constexpr std::string_view kNames[] = {"gpipe", "1f1b", "interleaved", "zero-bubble"};
  return kNames[static_cast<size_t>(kind)];
}

double StageCosts::of(Action::Kind kind) const {
  switch (kind) {
    case Action::forward:
      return forward;
    case Action::backward:
      return backward_input + backward_weight;
    case Action::backward_input:
      return backward_input;
    case Action::backward_weight:
      return backward_weight;
  }
  return 0;
}

std::vector<Action> one_forward_one_backward(int64_t stage, int64_t stages, int64_t micro_steps) {
  const int64_t ahead = std::min(stages - stage - 1, micro_steps);
  std::vector<Action> actions;
  for (int64_t m = 0; m < ahead; ++m) actions.push_back({Action::forward, m, stage});
  for (int64_t m = 0; m < micro_steps; ++m) {
    if (ahead + m < micro_steps) actions.push_back({Action::forward, ahead + m, stage});
    actions.push_back({Action::backward, m, stage});
  }
  return actions;
}

int64_t most_in_flight(const std::vector<Action>& actions) {
  int64_t now = 0, most = 0;
  for (const Action& action : actions) {
    if (action.kind == Action::backward_input) continue;
    most = std::max(most, now += action.kind == Action::forward ? 1 : -1);
  }
  return most;
}

namespace {

std::vector<Action> all_then_all(int64_t stage, int64_t micro_steps) {
  std::vector<Action> actions;
  for (const Action::Kind kind : {Action::forward, Action::backward})
    for (int64_t m = 0; m < micro_steps; ++m) actions.push_back({kind, m, stage});
  return actions;
}

// Micro-steps go through the chunks of a stage in groups of `stages`, so that a stage has the next
// chunk's input when it has done a group.
std::vector<Action> interleaved(int64_t stage, int64_t stages, int64_t per_stage,
                                int64_t micro_steps) {
  const int64_t all = per_stage * micro_steps;
  const auto nth = [&](Action::Kind kind, int64_t i) {
    const int64_t group = i / (stages * per_stage), within = i % (stages * per_stage);
    const int64_t local = within / stages;
    const int64_t chunk = kind == Action::forward ? local : per_stage - 1 - local;
    return Action{kind, group * stages + within % stages, chunk * stages + stage};
  };
  const int64_t ahead = std::min(all, 2 * (stages - stage - 1) + (per_stage - 1) * stages);
  std::vector<Action> actions;
  for (int64_t i = 0; i < ahead; ++i) actions.push_back(nth(Action::forward, i));
  for (int64_t i = 0; i < all; ++i) {
    if (ahead + i < all) actions.push_back(nth(Action::forward, ahead + i));
    actions.push_back(nth(Action::backward, i));
  }
  return actions;
}

// 1F1B in which stage s computes weight gradients s micro-steps after input gradients. So no stage
// holds more micro-steps than the first, and what is late fills the drain of the pipeline.
std::vector<Action> zero_bubble(int64_t stage, int64_t stages, int64_t micro_steps) {
  const int64_t ahead = std::min(stages - stage, micro_steps);
  std::vector<Action> actions;
  for (int64_t m = 0; m < ahead; ++m) actions.push_back({Action::forward, m, stage});
  for (int64_t m = 0; m < micro_steps + stage; ++m) {
    if (m < micro_steps) actions.push_back({Action::backward_input, m, stage});
    if (m >= stage) actions.push_back({Action::backward_weight, m - stage, stage});
    if (ahead + m < micro_steps) actions.push_back({Action::forward, ahead + m, stage});
  }
  return actions;
}

}  // namespace

PipelineSchedule PipelineSchedule::make(ScheduleKind kind, int64_t stages, int64_t chunks_per_stage,
                                        int64_t micro_steps, const StageCosts& costs) {
  LATHE_CHECK(stages >= 1 && chunks_per_stage >= 1 && micro_steps >= 1);
  if (kind == ScheduleKind::interleaved && micro_steps % stages != 0) {
    throw UserError(
        "--pp-schedule interleaved needs a multiple of {} micro-steps (--pp), and there are {}: "
        "change --total-batch-size, or use 1f1b",
        stages, micro_steps);
  }
  if (kind == ScheduleKind::interleaved && chunks_per_stage == 1) {
    throw UserError("--pp-schedule interleaved needs --pp-chunks 2 or more: give it, or use 1f1b");
  }
  if (kind != ScheduleKind::interleaved && chunks_per_stage > 1) {
    throw UserError(
        "--pp-schedule {} allows one chunk a stage: remove --pp-chunks {}, or use "
        "interleaved",
        name_of(kind), chunks_per_stage);
  }
  std::vector<std::vector<Action>> actions;
  for (int64_t s = 0; s < stages; ++s) {
    switch (kind) {
      case ScheduleKind::gpipe:
        actions.push_back(all_then_all(s, micro_steps));
        break;
      case ScheduleKind::one_f_one_b:
        actions.push_back(one_forward_one_backward(s, stages, micro_steps));
        break;
      case ScheduleKind::interleaved:
        actions.push_back(interleaved(s, stages, chunks_per_stage, micro_steps));
        break;
      case ScheduleKind::zero_bubble:
        actions.push_back(zero_bubble(s, stages, micro_steps));
        break;
    }
  }
  return {std::move(actions), stages * chunks_per_stage, micro_steps, costs};
}

PipelineSchedule::PipelineSchedule(std::vector<std::vector<Action>> stages, int64_t chunks,
                                   int64_t micro_steps, const StageCosts& costs)
    : actions_(std::move(stages)), chunks_(chunks), micro_steps_(micro_steps), costs_(costs) {
  check();
  find_order();
}

// Each pass of each micro-step through each chunk once, on its stage; a backward pass whole or in
// two parts.
void PipelineSchedule::check() const {
  for (const double cost : {costs_.forward, costs_.backward_input, costs_.backward_weight})
    LATHE_CHECK(std::isfinite(cost) && cost > 0, "a pass takes {}", cost);
  LATHE_CHECK(std::isfinite(costs_.transfer) && costs_.transfer >= 0, "a transfer takes {}",
              costs_.transfer);
  std::set<std::tuple<int64_t, int64_t, Action::Kind>> seen;
  std::map<std::pair<int64_t, Action::Kind>, int64_t> latest;
  const bool several = chunks_ > stages();
  for (int64_t s = 0; s < stages(); ++s) {
    for (const Action& a : actions(s)) {
      const auto refuse = [&](const std::string& why) {
        throw UserError("the schedule has {} on stage {}{}", text_of(a, several), s, why);
      };
      if (a.chunk < 0 || a.chunk >= chunks_ || a.micro_step < 0 || a.micro_step >= micro_steps_)
        refuse(", which is no chunk or micro-step of it; correct it");
      if (stage_of(a.chunk) != s)
        refuse(fmt::format(", but its chunk is on stage {}; correct it", stage_of(a.chunk)));
      if (!seen.insert({a.chunk, a.micro_step, a.kind}).second) refuse(" twice; remove one");
      int64_t& before = latest.try_emplace({a.chunk, a.kind}, -1).first->second;
      if (a.micro_step < before)
        refuse(fmt::format(" after micro-step {}; keep micro-steps in order", before));
      before = a.micro_step;
    }
  }
  for (int64_t c = 0; c < chunks_; ++c) {
    for (int64_t m = 0; m < micro_steps_; ++m) {
      const auto has = [&](Action::Kind kind) { return seen.contains({c, m, kind}); };
      const bool whole = has(Action::backward);
      const bool input = has(Action::backward_input), weight = has(Action::backward_weight);
      if (has(Action::forward) && (whole ? !input && !weight : input && weight)) continue;
      throw UserError(
          "the schedule has micro-steps up to {2}, so it needs F{0} and either B{0} or I{0} and "
          "W{0} of "
          "chunk {1}, each once; correct it",
          m, c, micro_steps_ - 1);
    }
  }
}

// Runs the schedule: a stage does its actions in their order, each as soon as it can; a transfer
// begins when its tensor is there and neither end is in another transfer in this direction. Events
// are found in the order of their starts. At equal starts, too, an event is found after what it
// needs.
void PipelineSchedule::find_order() {
  constexpr double kNot = -1;  // done, or there
  const int64_t last = chunks_ - 1;
  const auto index = [this](int64_t chunk, int64_t micro_step) {
    return static_cast<size_t>(chunk * micro_steps_ + micro_step);
  };
  // When a result is on the stage of the chunk that uses it: activations, gradients; and when an
  // action was done, by kind.
  const auto cells = static_cast<size_t>(chunks_ * micro_steps_);
  std::vector<std::array<double, 2>> there(cells, {kNot, kNot});
  std::vector<std::array<double, 4>> done(cells, {kNot, kNot, kNot, kNot});
  std::vector<size_t> next(actions_.size());
  std::vector<double> free_at(actions_.size());
  std::vector<std::array<double, 2>> line_free_at(actions_.size(), {0, 0});  // down, up
  std::vector<PipelineEvent> waiting;  // transfers whose tensor is there at `start`
  // The earliest start of a stage's next action; kNot: what it needs has not been found, or there
  // is none.
  const auto earliest = [&](int64_t s) {
    const auto i = static_cast<size_t>(s);
    if (next[i] == actions_[i].size()) return kNot;
    const Action& a = actions_[i][next[i]];
    const size_t cell = index(a.chunk, a.micro_step);
    double at = free_at[i];
    bool can = true;
    const auto need = [&](double when) {
      can = can && when != kNot;
      at = std::max(at, when);
    };
    if (a.kind == Action::forward) {
      if (a.chunk > 0) need(there[cell][0]);
    } else if (is_backward(a.kind)) {
      need(done[cell][Action::forward]);
      if (a.chunk < last) need(there[cell][1]);
    } else {
      need(done[cell][Action::backward_input]);
    }
    return can ? at : kNot;
  };
  std::vector<double> ready;
  for (int64_t s = 0; s < stages(); ++s) ready.push_back(earliest(s));
  const auto renew = [&](int64_t chunk) {
    const int64_t s = stage_of(chunk);
    ready[static_cast<size_t>(s)] = earliest(s);
  };
  const auto line = [&](int64_t chunk, const PipelineEvent& t) -> double& {
    const bool down = t.action.kind == Action::forward;
    return line_free_at[static_cast<size_t>(stage_of(chunk))][down ? 0 : 1];
  };
  for (;;) {
    // Transfers before actions that start at the same time, then by stage.
    std::optional<std::tuple<double, int, size_t>> first;
    const auto offer = [&](double at, int kind, size_t i) {
      if (!first || std::tuple(at, kind, i) < *first) first = {at, kind, i};
    };
    for (size_t i = 0; i < waiting.size(); ++i) {
      const PipelineEvent& t = waiting[i];
      offer(std::max({t.start, line(t.action.chunk, t), line(t.to, t)}), 0, i);
    }
    for (size_t s = 0; s < ready.size(); ++s)
      if (ready[s] != kNot) offer(ready[s], 1, s);
    if (!first) break;
    const auto [at, kind, i] = *first;
    if (kind == 0) {
      PipelineEvent t = waiting[i];
      waiting.erase(waiting.begin() + static_cast<int64_t>(i));
      t.start = at;
      t.end = at + costs_.transfer;
      line(t.action.chunk, t) = line(t.to, t) = t.end;
      there[index(t.to, t.action.micro_step)][t.action.kind == Action::forward ? 0 : 1] = t.end;
      renew(t.to);
      order_.push_back(t);
      continue;
    }
    const Action& a = actions_[i][next[i]++];
    const double end = free_at[i] = at + costs_.of(a.kind);
    done[index(a.chunk, a.micro_step)][a.kind] = end;
    order_.push_back({.action = a, .start = at, .end = end});
    // Its result is on its way, or there if the chunk that uses it is on this stage.
    const bool down = a.kind == Action::forward;
    const int64_t to = a.chunk + (down ? 1 : -1);
    if (a.kind != Action::backward_weight && to >= 0 && to <= last) {
      if (stages() == 1) {
        there[index(to, a.micro_step)][down ? 0 : 1] = end;
      } else {
        waiting.push_back({.action = a, .to = to, .start = end});
      }
    }
    renew(a.chunk);
  }
  for (size_t i = 0; i < next.size(); ++i)
    if (next[i] < actions_[i].size()) refuse_circle(next);
}

// next[s] is the action of stage s that cannot begin. A stage whose action comes before what it
// needs on the same stage is at fault; otherwise several stages together.
void PipelineSchedule::refuse_circle(const std::vector<size_t>& next) const {
  const bool several = chunks_ > stages();
  std::string waiting;
  for (size_t s = 0; s < next.size(); ++s) {
    const std::vector<Action>& mine = actions_[s];
    if (next[s] == mine.size()) continue;
    const Action& stuck = mine[next[s]];
    waiting +=
        fmt::format("{}{} on stage {}", waiting.empty() ? "" : ", ", text_of(stuck, several), s);
    for (size_t i = next[s] + 1; i < mine.size(); ++i) {
      const Action& later = mine[i];
      const bool needed =
          later.micro_step == stuck.micro_step && later.chunk == stuck.chunk &&
          later.kind ==
              (stuck.kind == Action::backward_weight ? Action::backward_input : Action::forward);
      if (!needed) continue;
      throw UserError(
          "the schedule has {} on stage {} before {}, which it needs; change their order",
          text_of(stuck, several), s, text_of(later, several));
    }
  }
  throw UserError(
      "the stages of the schedule wait for each other, for ever, with {}; change the order",
      waiting);
}

std::vector<PipelineEvent> PipelineSchedule::order_of(int64_t stage) const {
  std::vector<PipelineEvent> mine;
  std::ranges::copy_if(order_, std::back_inserter(mine), [&](const PipelineEvent& e) {
    return stage_of(e.action.chunk) == stage || (e.is_transfer() && stage_of(e.to) == stage);
  });
  return mine;
}

int64_t PipelineSchedule::sets(int64_t stage) const {
  int64_t now = 0, most = 0;
  for (const PipelineEvent& e : order_of(stage)) {
    const Action& a = e.action;
    const bool down = a.kind == Action::forward;
    const bool arrives = e.is_transfer() && down && stage_of(e.to) == stage;
    const bool begins = !e.is_transfer() && down && (a.chunk == 0 || stages() == 1);
    if (arrives || begins) most = std::max(most, ++now);
    if (!e.is_transfer() && (a.kind == Action::backward || a.kind == Action::backward_weight))
      --now;
  }
  return most;
}

int64_t PipelineSchedule::gradients(int64_t stage) const {
  int64_t now = 0, most = 0;
  for (const PipelineEvent& e : order_of(stage)) {
    const Action& a = e.action;
    if (a.kind == Action::forward || a.kind == Action::backward_weight) continue;
    const bool receives = e.is_transfer() && stage_of(e.to) == stage;
    // The pass makes one while it still reads the other.
    if (receives || !e.is_transfer()) most = std::max(most, ++now);
    const bool sent = e.is_transfer() && !receives;
    const bool used = !e.is_transfer() && a.chunk + 1 < chunks_;
    const bool stays = !e.is_transfer() && a.chunk == 0;  // the embeddings take it at once
    now -= sent + used + stays;
  }
  return most;
}

double PipelineSchedule::duration() const {
  double end = 0;
  for (const PipelineEvent& e : order_) end = std::max(end, e.end);
  return end;
}

double PipelineSchedule::bubble() const {
  double work = 0;
  for (const PipelineEvent& e : order_)
    if (!e.is_transfer()) work += e.end - e.start;
  return 1 - work / (duration() * static_cast<double>(stages()));
}

std::string PipelineSchedule::to_string() const {
  std::string text;
  for (const std::vector<Action>& stage : actions_) {
    for (size_t i = 0; i < stage.size(); ++i)
      text += (i > 0 ? " " : "") + text_of(stage[i], chunks_ > stages());
    text += "\n";
  }
  return text;
}

PipelineSchedule PipelineSchedule::parse(std::string_view text, const StageCosts& costs) {
  std::vector<std::vector<Action>> stages;
  int64_t chunks = 0, micro_steps = 0;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    if (!(words >> word)) continue;  // an empty line
    const auto stage = static_cast<int64_t>(stages.size());
    std::vector<Action>& actions = stages.emplace_back();
    do {
      Action action{.chunk = stage};
      const size_t kind = kLetters.find(word[0]);
      const char *at = word.data() + 1, *const end = word.data() + word.size();
      const auto number = [&](int64_t& value) {
        constexpr int64_t kMost = 1 << 20;
        const bool digit = at < end && *at >= '0' && *at <= '9';
        const auto [next, error] = std::from_chars(at, end, value);
        at = next;
        return digit && error == std::errc() && value < kMost;
      };
      bool well = kind != std::string_view::npos && number(action.micro_step);
      if (well && at < end) well = *at++ == '.' && number(action.chunk) && at == end;
      if (!well) {
        throw UserError(
            "stage {} of the schedule has '{}', which is not an action such as F0, B3 or I2.1; "
            "correct it",
            stage, word);
      }
      action.kind = static_cast<Action::Kind>(kind);
      chunks = std::max(chunks, action.chunk + 1);
      micro_steps = std::max(micro_steps, action.micro_step + 1);
      actions.push_back(action);
    } while (words >> word);
  }
  if (stages.empty() || micro_steps == 0) throw UserError("the schedule is empty; write one");
  const auto count = static_cast<int64_t>(stages.size());
  return {std::move(stages), std::max(chunks, count), micro_steps, costs};
}

}  // namespace lathe
