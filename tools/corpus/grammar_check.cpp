// Proofs about a grammar: that it is unambiguous, how often it derives a text, all of its texts.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "kernels/device/error.h"
#include "tools/corpus/grammar.h"

namespace lathe {
namespace {

using Part = Grammar::Part;
using Kind = Grammar::Part::Kind;
using Sequence = Grammar::Sequence;
using Rule = Grammar::Rule;
using Rows = std::vector<int>;            // the remembered row of each name, or -1
using Ends = std::map<size_t, uint64_t>;  // where a match may end, and in how many ways

// Counts derivations by dynamic programming over (rule, begin, remembered rows). It follows every
// alternative and assumes nothing about prefixes.
class Matcher {
 public:
  Matcher(const std::vector<Rule>& rules, std::string_view text) : rules_(rules), text_(text) {}

  const Ends& rule(int index, int column, size_t begin, const Rows& rows) {
    const auto key = std::make_tuple(index, column, begin, rows);
    if (const auto known = known_.find(key); known != known_.end()) return known->second;
    Ends ends;
    for (const auto& row : rules_[index].rows) {
      sequence(row.columns[column], 0, begin, rows, 1, ends);
    }
    return known_[key] = std::move(ends);
  }

 private:
  // Adds to `ends` the matches of parts[at..] from `begin`, each `ways` times.
  void sequence(const Sequence& parts, size_t at, size_t begin, const Rows& rows, uint64_t ways,
                Ends& ends) {
    if (at == parts.size()) {
      ends[begin] += ways;
      return;
    }
    const Part& part = parts[at];
    if (part.kind == Kind::kText) {
      if (text_.substr(begin, part.text.size()) != part.text) return;
      sequence(parts, at + 1, begin + part.text.size(), rows, ways, ends);
    } else if (part.kind == Kind::kRule) {
      for (const auto& [end, count] : rule(part.rule, part.column, begin, rows)) {
        sequence(parts, at + 1, end, rows, ways * count, ends);
      }
    } else {
      const Rule& table = rules_[part.rule];
      const bool bind = part.kind == Kind::kBind;
      for (size_t r = 0; r < table.rows.size(); ++r) {
        if (!bind && static_cast<int>(r) != rows[part.variable]) continue;
        Rows inside = rows;
        inside[part.variable] = static_cast<int>(r);
        Ends middle;
        sequence(table.rows[r].columns[part.column], 0, begin, inside, 1, middle);
        for (const auto& [end, count] : middle) {
          sequence(parts, at + 1, end, inside, ways * count, ends);
        }
      }
    }
  }

  const std::vector<Rule>& rules_;
  std::string_view text_;
  std::map<std::tuple<int, int, size_t, Rows>, Ends> known_;
};

// Runs the alternatives of a rule side by side over all texts. A frame is a place in the grammar
// together with the places to return to; a remembered row is taken for any row of its table.
class PrefixProver {
 public:
  explicit PrefixProver(const std::vector<Rule>& rules) : rules_(rules) {}

  // Empty, or a text that one alternative of the rule writes and that another one begins with.
  std::string common_prefix(int rule, int column, bool& found) {
    State start;
    for (size_t r = 0; r < rules_[rule].rows.size(); ++r) {
      close(static_cast<int>(r), intern({&rules_[rule].rows[r].columns[column], 0, 0, kEnd}),
            start);
    }
    std::set<State> seen{start};
    std::vector<std::pair<State, std::string>> waiting{{start, ""}};
    while (!waiting.empty()) {
      const auto [state, text] = std::move(waiting.back());
      waiting.pop_back();
      if (state.begin()->first == state.rbegin()->first) continue;  // one alternative is left
      found = std::any_of(state.begin(), state.end(),
                          [](const auto& member) { return member.second == kEnd; });
      if (found) return text;
      for (const auto& [letter, next] : step(state)) {
        if (seen.insert(next).second) waiting.emplace_back(next, text + letter);
      }
    }
    return "";
  }

 private:
  static constexpr int kEnd = -1;
  using Frame = std::tuple<const Sequence*, size_t, size_t, int>;  // parts, part, letter, return
  using State = std::set<std::pair<int, int>>;                     // (alternative, frame)

  int intern(const Frame& frame) {
    const auto [place, fresh] = ids_.emplace(frame, static_cast<int>(frames_.size()));
    if (fresh) frames_.push_back(frame);
    return place->second;
  }

  // Adds the frames, standing before a letter or at the end, that are reached without a letter.
  void close(int alternative, int frame, State& state) {
    if (frame == kEnd) {
      state.emplace(alternative, kEnd);
      return;
    }
    const auto [parts, at, letter, back] = frames_[frame];
    if (at == parts->size()) return close(alternative, back, state);
    const Part& part = (*parts)[at];
    if (part.kind == Kind::kText) {
      if (letter < part.text.size()) {
        state.emplace(alternative, frame);
      } else {
        close(alternative, intern({parts, at + 1, 0, back}), state);
      }
      return;
    }
    const int after = at + 1 == parts->size() ? back : intern({parts, at + 1, 0, back});
    for (const auto& row : rules_[part.rule].rows) {
      close(alternative, intern({&row.columns[part.column], 0, 0, after}), state);
    }
  }

  std::map<char, State> step(const State& state) {
    std::map<char, State> result;
    for (const auto& [alternative, frame] : state) {
      if (frame == kEnd) continue;
      const auto [parts, at, letter, back] = frames_[frame];
      State& next = result[(*parts)[at].text[letter]];
      close(alternative, intern({parts, at, letter + 1, back}), next);
    }
    return result;
  }

  const std::vector<Rule>& rules_;
  std::map<Frame, int> ids_;
  std::vector<Frame> frames_;
};

using Texts = std::vector<std::pair<std::string, double>>;

class Enumerator {
 public:
  Enumerator(const std::vector<Rule>& rules, size_t limit) : rules_(rules), limit_(limit) {}

  Texts sequence(const Sequence& parts, size_t at, const Rows& rows) const {
    if (at == parts.size()) return {{"", 1.0}};
    const Part& part = parts[at];
    Texts out;
    if (part.kind == Kind::kText) {
      join({{part.text, 1.0}}, 1.0, sequence(parts, at + 1, rows), out);
      return out;
    }
    const Rule& rule = rules_[part.rule];
    for (size_t r = 0; r < rule.rows.size(); ++r) {
      Rows inside = rows;
      double probability = rule.probability(r);
      if (part.kind == Kind::kBind) inside[part.variable] = static_cast<int>(r);
      if (part.kind == Kind::kUse) {
        if (static_cast<int>(r) != rows[part.variable]) continue;
        probability = 1;
      }
      join(sequence(rule.rows[r].columns[part.column], 0, inside), probability,
           sequence(parts, at + 1, inside), out);
    }
    return out;
  }

 private:
  void join(const Texts& first, double probability, const Texts& rest, Texts& out) const {
    LATHE_CHECK(first.size() * rest.size() + out.size() <= limit_,
                "the grammar has more than {} texts", limit_);
    for (const auto& [text, p] : first) {
      for (const auto& [more, q] : rest) out.emplace_back(text + more, probability * p * q);
    }
  }

  const std::vector<Rule>& rules_;
  size_t limit_;
};

}  // namespace

uint64_t Grammar::derivations(std::string_view text) const {
  std::map<size_t, uint64_t> ways{{0, 1}};
  for (auto at = ways.begin(); at != ways.end() && at->first < text.size(); ++at) {
    Matcher matcher(rules_, text);
    for (const auto& [end, count] : matcher.rule(0, 0, at->first, Rows(variables_, -1))) {
      if (end > at->first) ways[end] += at->second * count;
    }
  }
  const auto whole = ways.find(text.size());
  return whole == ways.end() || text.empty() ? 0 : whole->second;
}

std::string Grammar::ambiguity() const {
  std::set<std::pair<int, int>> choices{{0, 0}};
  for (const Rule& rule : rules_) {
    for (const Row& row : rule.rows) {
      for (const Sequence& sequence : row.columns) {
        for (const Part& part : sequence) {
          if (part.kind == Part::Kind::kRule || part.kind == Part::Kind::kBind) {
            choices.emplace(part.rule, part.column);
          }
        }
      }
    }
  }
  for (const auto& [rule, column] : choices) {
    bool found = false;
    const std::string text = PrefixProver(rules_).common_prefix(rule, column, found);
    if (found) {
      return fmt::format("rule '{}': one alternative writes '{}', and another begins with it",
                         rules_[rule].name, text);
    }
  }
  return "";
}

std::vector<std::pair<std::string, double>> Grammar::enumerate(size_t limit) const {
  const Sequence start{Part{.kind = Part::Kind::kRule, .text = "", .rule = 0}};
  return Enumerator(rules_, limit).sequence(start, 0, Rows(variables_, -1));
}

}  // namespace lathe
