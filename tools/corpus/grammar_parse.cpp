// Reads the description of a grammar, resolves its names and checks what grammar.h promises.
#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "kernels/device/error.h"
#include "tools/corpus/grammar.h"

namespace lathe {
namespace {

using Part = Grammar::Part;
using Kind = Grammar::Part::Kind;
using Sequence = Grammar::Sequence;
using Row = Grammar::Row;
using Rule = Grammar::Rule;

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw CheckError(fmt::format("grammar, rule '{}': {}", where, what));
}

std::string trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(' ') - begin + 1));
}

std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at != std::string_view::npos;) {
    const size_t end = text.find(separator, at);
    pieces.push_back(trim(text.substr(at, end == std::string_view::npos ? end : end - at)));
    at = end == std::string_view::npos ? end : end + separator.size();
  }
  return pieces;
}

std::string decapitalised(std::string name) {
  name[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(name[0])));
  return name;
}

std::string capitalised(std::string name) {
  name[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(name[0])));
  return name;
}

struct RawRule {
  std::string name;
  std::vector<std::string> columns;
  std::vector<std::pair<uint64_t, std::string>> rows;
};

// "3* text" has the weight 3, "text" the weight 1.
std::pair<uint64_t, std::string> read_row(std::string_view line) {
  const size_t digits = line.find_first_not_of("0123456789");
  if (digits != 0 && digits < 10 && line.substr(digits, 2) == "* ") {
    return {std::stoull(std::string(line.substr(0, digits))), std::string(line.substr(digits + 2))};
  }
  return {1, std::string(line)};
}

// The next line, with the lines that continue it after a backslash.
std::string next_line(std::string_view& description) {
  std::string line;
  do {
    if (!line.empty()) line.pop_back();
    const std::string_view more = description.substr(0, description.find('\n'));
    description.remove_prefix(std::min(description.size(), more.size() + 1));
    line += line.empty() ? std::string(more) : trim(more);
  } while (line.ends_with('\\') && !description.empty());
  return line;
}

std::vector<RawRule> read_lines(std::string_view description) {
  std::vector<RawRule> rules;
  bool in_lists = false;
  while (!description.empty()) {
    const std::string line = next_line(description);
    if (line.empty() || line[0] == '#') continue;
    if (line[0] != ' ') {
      const size_t open = line.find('(');
      RawRule rule{std::string(line.substr(0, open)), {"text"}, {}};
      in_lists = line.back() == ':';
      if (in_lists) rule.name.pop_back();
      if (open != std::string_view::npos) {
        if (line.back() != ')') fail(rule.name, "a list of columns ends with ')'");
        rule.columns = split(line.substr(open + 1, line.size() - open - 2), ",");
      }
      rules.push_back(std::move(rule));
    } else {
      if (rules.empty()) fail(trim(line), "an alternative stands before the first rule");
      const std::string text = line.substr(line.find_first_not_of(' '));
      if (!in_lists) rules.back().rows.push_back(read_row(text));
      for (const std::string& word : in_lists ? split(text, ",") : std::vector<std::string>{}) {
        if (!word.empty()) rules.back().rows.emplace_back(1, word);
      }
    }
  }
  return rules;
}

class Parser {
 public:
  explicit Parser(std::string_view description) : raw_(read_lines(description)) {}

  std::vector<Rule> parse() {
    if (raw_.empty()) fail("", "the description has no rule");
    for (size_t r = 0; r < raw_.size(); ++r) {
      if (!rule_index_.emplace(raw_[r].name, r).second) fail(raw_[r].name, "it is described twice");
    }
    for (const RawRule& raw : raw_) {
      for (const auto& [weight, text] : raw.rows) collect_bindings(raw.name, text);
    }
    for (const RawRule& raw : raw_) rules_.push_back(parse_rule(raw));
    resolve_capitals();
    std::vector<std::vector<int>> state(rules_.size());
    check_recursion(0, 0, state);
    check_bound(0, 0, std::vector<bool>(variable_index_.size(), false));
    return std::move(rules_);
  }

  size_t variables() const { return variable_index_.size(); }

 private:
  int find_rule(const std::string& where, const std::string& name) const {
    const auto found = rule_index_.find(name);
    if (found == rule_index_.end()) fail(where, fmt::format("there is no rule '{}'", name));
    return static_cast<int>(found->second);
  }

  int find_column(const std::string& where, int rule, const std::string& name) const {
    const auto& columns = raw_[rule].columns;
    const auto found = std::find(columns.begin(), columns.end(), name);
    if (found == columns.end()) {
      fail(where, fmt::format("rule '{}' has no column '{}'", raw_[rule].name, name));
    }
    return static_cast<int>(found - columns.begin());
  }

  // Every name is bound from one table, which its uses can then be resolved against.
  void collect_bindings(const std::string& where, const std::string& text) {
    for (size_t at = text.find('{'); at != std::string::npos; at = text.find('{', at + 1)) {
      const std::string inside = text.substr(at + 1, text.find('}', at) - at - 1);
      const size_t equals = inside.find('=');
      if (equals == std::string::npos) continue;
      const std::string name = inside.substr(0, equals);
      const std::string table = inside.substr(equals + 1);
      const int rule = find_rule(where, table.substr(0, table.find('.')));
      variable_index_.emplace(name, variable_index_.size());
      if (table_of_.emplace(name, rule).first->second != rule) {
        fail(where, fmt::format("'{}' is bound from two tables", name));
      }
    }
  }

  Part parse_reference(const std::string& where, std::string inside) {
    Part part;
    const size_t equals = inside.find('=');
    if (equals != std::string::npos) {
      part.kind = Kind::kBind;
      part.variable = static_cast<int>(variable_index_.at(inside.substr(0, equals)));
      inside = inside.substr(equals + 1);
    }
    const size_t dot = inside.find('.');
    std::string head = inside.substr(0, dot);
    std::string column = dot == std::string::npos ? "" : inside.substr(dot + 1);
    std::string& last = column.empty() ? head : column;
    if (last.empty()) fail(where, "empty braces");
    part.capital = std::isupper(static_cast<unsigned char>(last[0])) != 0;
    last = decapitalised(last);
    if (part.kind != Kind::kBind && !column.empty()) {
      part.kind = Kind::kUse;
      if (!table_of_.contains(head)) fail(where, fmt::format("nothing binds '{}'", head));
      part.variable = static_cast<int>(variable_index_.at(head));
      part.rule = table_of_.at(head);
    } else {
      if (part.kind != Kind::kBind) part.kind = Kind::kRule;
      part.rule = find_rule(where, head);
    }
    part.column = column.empty() ? 0 : find_column(where, part.rule, column);
    return part;
  }

  Sequence parse_sequence(const std::string& where, std::string_view text) {
    Sequence sequence;
    std::string literal;
    auto flush = [&] {
      if (!literal.empty()) sequence.push_back(Part{.text = literal});
      literal.clear();
    };
    for (size_t at = 0; at < text.size(); ++at) {
      if (text[at] == '{') {
        const size_t close = text.find('}', at);
        if (close == std::string_view::npos) fail(where, "a '{' is not closed");
        flush();
        sequence.push_back(
            parse_reference(where, std::string(text.substr(at + 1, close - at - 1))));
        at = close;
      } else if (text.substr(at, 2) == "\\n") {
        literal += '\n';
        ++at;
      } else {
        if (text[at] < ' ' || text[at] > '~' || text[at] == '}' || text[at] == '\\') {
          fail(where, fmt::format("character {} has no place in the text",
                                  static_cast<int>(static_cast<unsigned char>(text[at]))));
        }
        literal += text[at];
      }
    }
    flush();
    return sequence;
  }

  Rule parse_rule(const RawRule& raw) {
    Rule rule{raw.name, raw.columns, {}, 0};
    if (raw.rows.empty()) fail(raw.name, "it has no alternative");
    for (const auto& [weight, text] : raw.rows) {
      std::vector<std::string> fields =
          raw.columns.size() == 1 ? std::vector<std::string>{text} : split(text, "|");
      if (fields.size() != raw.columns.size() || weight == 0) {
        fail(raw.name,
             fmt::format("'{}' needs {} columns and a positive weight", text, raw.columns.size()));
      }
      Row row{weight, {}};
      for (const std::string& field : fields) {
        row.columns.push_back(parse_sequence(raw.name, field));
      }
      rule.total_weight += weight;
      rule.rows.push_back(std::move(row));
    }
    return rule;
  }

  // The column that repeats `column` with its first letter in upper case, made when first needed.
  int capital_column(int rule, int column) {
    const std::string name = capitalised(rules_[rule].columns[column]);
    auto& columns = rules_[rule].columns;
    const auto found = std::find(columns.begin(), columns.end(), name);
    if (found != columns.end()) return static_cast<int>(found - columns.begin());
    columns.push_back(name);
    const int capital = static_cast<int>(columns.size()) - 1;
    for (size_t r = 0; r < rules_[rule].rows.size(); ++r) {
      Sequence sequence = rules_[rule].rows[r].columns[column];
      if (sequence.empty()) fail(rules_[rule].name, "an empty text cannot begin with a capital");
      if (sequence[0].kind == Kind::kText) {
        sequence[0].text = capitalised(sequence[0].text);
      } else {
        sequence[0].capital = true;
      }
      resolve_capitals(sequence);
      rules_[rule].rows[r].columns.push_back(std::move(sequence));
    }
    return capital;
  }

  void resolve_capitals(Sequence& sequence) {
    for (Part& part : sequence) {
      if (part.capital) part.column = capital_column(part.rule, part.column);
      part.capital = false;
    }
  }

  void resolve_capitals() {
    for (size_t r = 0; r < rules_.size(); ++r) {
      for (size_t row = 0; row < rules_[r].rows.size(); ++row) {
        for (size_t c = 0; c < raw_[r].columns.size(); ++c) {
          Sequence sequence = rules_[r].rows[row].columns[c];  // rows grow while this is resolved
          resolve_capitals(sequence);
          rules_[r].rows[row].columns[c] = std::move(sequence);
        }
      }
    }
  }

  // Depth first; state: 0 not seen, 1 on the path, 2 done.
  void check_recursion(int rule, int column, std::vector<std::vector<int>>& state) const {
    state[rule].resize(rules_[rule].columns.size());
    if (state[rule][column] == 1) fail(rules_[rule].name, "it uses itself");
    if (state[rule][column] == 2) return;
    state[rule][column] = 1;
    for (const Row& row : rules_[rule].rows) {
      for (const Part& part : row.columns[column]) {
        if (part.kind != Kind::kText) check_recursion(part.rule, part.column, state);
      }
    }
    state[rule][column] = 2;
  }

  void check_bound(int rule, int column, const std::vector<bool>& bound) {
    if (!checked_.insert({{rule, column}, bound}).second) return;
    for (const Row& row : rules_[rule].rows) {
      std::vector<bool> inside = bound;
      for (const Part& part : row.columns[column]) {
        if (part.kind == Kind::kText) continue;
        if (part.kind == Kind::kBind) inside[part.variable] = true;
        if (part.kind == Kind::kUse && !inside[part.variable]) {
          fail(rules_[rule].name,
               fmt::format("it uses a name from '{}' where none is bound", rules_[part.rule].name));
        }
        check_bound(part.rule, part.column, inside);
      }
    }
  }

  std::vector<RawRule> raw_;
  std::vector<Rule> rules_;
  std::map<std::string, size_t> rule_index_;
  std::map<std::string, size_t> variable_index_;
  std::map<std::string, int> table_of_;
  std::set<std::pair<std::pair<int, int>, std::vector<bool>>> checked_;
};

}  // namespace

Grammar::Grammar(std::string_view description) {
  Parser parser(description);
  rules_ = parser.parse();
  variables_ = parser.variables();
}

}  // namespace lathe
