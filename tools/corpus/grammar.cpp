// What the grammar is for: its texts, and their exact entropy and length.
#include "tools/corpus/grammar.h"

#include <cmath>
#include <map>
#include <numbers>

namespace lathe {
namespace {

using Part = Grammar::Part;
using Kind = Grammar::Part::Kind;
using Sequence = Grammar::Sequence;
using Rule = Grammar::Rule;
using Rows = std::vector<int>;  // the remembered row of each name, or -1

class Sampler {
 public:
  Sampler(const std::vector<Rule>& rules, GrammarRandom& random, std::string& text)
      : rules_(rules), random_(random), text_(text) {}

  void write(const Sequence& sequence, Rows rows) {
    for (const Part& part : sequence) {
      if (part.kind == Kind::kText) {
        text_ += part.text;
      } else if (part.kind == Kind::kUse) {
        write(rules_[part.rule].rows[rows[part.variable]].columns[part.column], rows);
      } else {
        const int row = choose(rules_[part.rule]);
        if (part.kind == Kind::kBind) rows[part.variable] = row;
        write(rules_[part.rule].rows[row].columns[part.column], rows);
      }
    }
  }

  int choose(const Rule& rule) {
    uint64_t ticket = random_.below(rule.total_weight);
    int row = 0;
    for (; ticket >= rule.rows[row].weight; ++row) ticket -= rule.rows[row].weight;
    nats_ -= std::log(rule.probability(row));
    return row;
  }

  double nats() const { return nats_; }

 private:
  const std::vector<Rule>& rules_;
  GrammarRandom& random_;
  std::string& text_;
  double nats_ = 0;
};

// Expectations add up along a sequence, and rows are drawn independently of all other choices. So
// a name counts as its table's distribution (-1), except inside what a certain row writes.
class Expecter {
 public:
  explicit Expecter(const std::vector<Rule>& rules) : rules_(rules) {}

  GrammarExpectation choice(int rule_index, int column, int bound, const Rows& rows) {
    const auto key = std::make_pair(std::vector<int>{rule_index, column, bound}, rows);
    if (const auto known = known_.find(key); known != known_.end()) return known->second;
    GrammarExpectation result = average(rule_index, column, bound, rows);
    const Rule& rule = rules_[rule_index];
    for (size_t r = 0; r < rule.rows.size(); ++r) {
      result.nats -= rule.probability(r) * std::log(rule.probability(r));
    }
    return known_[key] = result;
  }

 private:
  // The mean over the rows, without the entropy of the choice among them.
  GrammarExpectation average(int rule_index, int column, int bound, Rows rows) {
    GrammarExpectation result;
    const Rule& rule = rules_[rule_index];
    for (size_t r = 0; r < rule.rows.size(); ++r) {
      if (bound >= 0) rows[bound] = static_cast<int>(r);
      const GrammarExpectation inside = sequence(rule.rows[r].columns[column], rows);
      result.nats += rule.probability(r) * inside.nats;
      result.characters += rule.probability(r) * inside.characters;
    }
    return result;
  }

  GrammarExpectation sequence(const Sequence& parts, Rows rows) {
    GrammarExpectation result;
    for (const Part& part : parts) {
      GrammarExpectation inside;
      if (part.kind == Kind::kText) {
        inside.characters = static_cast<double>(part.text.size());
      } else if (part.kind == Kind::kRule) {
        inside = choice(part.rule, part.column, -1, rows);
      } else if (part.kind == Kind::kBind) {
        inside = choice(part.rule, part.column, part.variable, rows);
        rows[part.variable] = -1;
      } else if (const int row = rows[part.variable]; row >= 0) {
        inside = sequence(rules_[part.rule].rows[row].columns[part.column], rows);
      } else {
        inside = average(part.rule, part.column, part.variable, rows);
      }
      result.nats += inside.nats;
      result.characters += inside.characters;
    }
    return result;
  }

  const std::vector<Rule>& rules_;
  std::map<std::pair<std::vector<int>, Rows>, GrammarExpectation> known_;
};

}  // namespace

uint64_t GrammarRandom::below(uint64_t bound) {
  const uint64_t excess = (UINT64_MAX % bound + 1) % bound;  // 2^64 mod bound
  uint64_t value = engine_();
  while (value > UINT64_MAX - excess) value = engine_();
  return value % bound;
}

double GrammarExpectation::bits_per_character() const {
  return nats_per_character() / std::numbers::ln2;
}

GrammarExpectation Grammar::expectation() const {
  return Expecter(rules_).choice(0, 0, -1, Rows(variables_, -1));
}

double Grammar::sample(GrammarRandom& random, std::string& text) const {
  Sampler sampler(rules_, random, text);
  const int row = sampler.choose(rules_[0]);
  sampler.write(rules_[0].rows[row].columns[0], Rows(variables_, -1));
  return sampler.nats();
}

}  // namespace lathe
