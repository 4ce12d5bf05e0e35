// A probabilistic grammar that writes text whose entropy is known exactly.
//
// A language model is judged by how far its loss stays above the entropy of the text, which for
// natural text nobody knows. For text written by this grammar it is a closed formula, so that a
// training run can say how much there was left to learn.
//
// Description. A rule is a name in the first column, followed by its alternatives, indented; an
// alternative may begin with a weight, as in "3* ". A colon after the name announces lines of words
// between commas. The first rule is the document.
//
//   greeting
//     2* Hello, {who=person}. {who.They} smiled.\n
//     Good {time}, {who=person}.\n
//   person(name, they)
//     Anna | she
//     Tom | he
//   time:
//     morning, evening
//
//   {time}        writes an alternative of the rule `time`
//   {who=person}  writes the first column of a row of `person` and remembers the row as `who`
//   {who=person.they}  the same, but writes another column
//   {who.they}    writes a column of the row that `who` remembers; a name counts until the end of
//                 the alternative that bound it, also in the rules used from there on
//   {Time}, {who.They}  the same with the first letter in upper case
//   \n            ends a line; a backslash at the end of a line continues it in the next one
//
// Unambiguous. The entropy of the text equals that of the random choices only if a text tells
// which choices made it. The grammar is prefix-free at every choice: no text of one alternative is
// equal to, or begins, a text of another alternative of that rule. Then a reader who goes from
// left to right always knows which alternative was taken: by induction over the rules (there is
// no recursion, so the induction ends), an alternative is a sequence of prefix-free pieces, hence
// uniquely parsed and prefix-free itself; a remembered row shows in the text at the place where it
// is bound; and what is written for a remembered row is no choice. ambiguity() decides this
// property for every rule with an automaton that runs all alternatives side by side.
//
// Documents in a row. The same property says that no document begins another one, so a
// concatenation of documents splits in one way only. In our stories an empty line, which occurs
// nowhere else, ends the document, so that the border is plain to see as well.
//
// Entropy per character. Documents are independent draws. With H the entropy of one document in
// nats and L its length, n documents hold n H nats in about n E[L] characters, so the text holds
// H / E[L] nats per character in the long run (a renewal process: the strong law of large numbers
// on both sums). H is the sum over all choices of (probability that the choice is met) x (entropy
// of the choice) and E[L] the same sum of lengths, both exact: names are bound independently of
// every other choice, so that expectations add up rule by rule. No model that predicts each
// character from what stands before it has a lower expected loss: whatever it assigns, its
// expected code length for n documents is at least their entropy, n H (Gibbs' inequality). A model
// that sees only the last T characters predicts from less, and conditioning on less never lowers
// the entropy; its loss can only be higher. What may lie below H / E[L] is the loss on one finite
// sample of text by the luck of the draw, and the training loss of a model that has memorised.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe {

// Integers below a bound, the same on every machine: the 64-bit Mersenne Twister is fixed by the
// C++ standard, and the bound is met by rejection (the standard's distributions are not fixed).
class GrammarRandom {
 public:
  explicit GrammarRandom(uint64_t seed) : engine_(seed) {}
  uint64_t below(uint64_t bound);

 private:
  std::mt19937_64 engine_;
};

// Expected nats (the entropy) and expected characters of one document.
struct GrammarExpectation {
  double nats = 0;
  double characters = 0;
  double nats_per_character() const { return nats / characters; }
  double bits_per_character() const;
};

class Grammar {
 public:
  // Throws CheckError that names the rule: unknown rule, column or name; recursion; a name used
  // where it is not bound; characters other than printable ASCII.
  explicit Grammar(std::string_view description);

  // Exact up to the rounding of double.
  GrammarExpectation expectation() const;

  // Appends one document to `text` and returns its information, -ln p, in nats.
  double sample(GrammarRandom& random, std::string& text) const;

  // The number of ways in which `text` is written by one or more documents in a row: 0 for text
  // that the grammar cannot write, 1 for any text of an unambiguous grammar.
  uint64_t derivations(std::string_view text) const;

  // Empty when the grammar is proven unambiguous; otherwise one sentence that names the rule and a
  // text in which two of its alternatives meet. The proof is sufficient, not necessary: it treats
  // a remembered row as if it could be any row.
  std::string ambiguity() const;

  // Every text of the grammar with its probability, one entry a derivation; for small grammars.
  // Throws CheckError above `limit` entries.
  std::vector<std::pair<std::string, double>> enumerate(size_t limit) const;

  // The grammar as the algorithms see it: everything that is written is a column of a rule.
  struct Part {
    enum class Kind { kText, kRule, kBind, kUse };
    Kind kind = Kind::kText;
    std::string text;  // kText: what to write
    int rule = -1;     // otherwise: the rule, and which of its columns to write
    int column = 0;
    int variable = -1;     // kBind, kUse: the name
    bool capital = false;  // first letter in upper case; resolved to a column when parsed
  };
  using Sequence = std::vector<Part>;
  struct Row {
    uint64_t weight = 1;
    std::vector<Sequence> columns;
  };
  struct Rule {
    std::string name;
    std::vector<std::string> columns;
    std::vector<Row> rows;
    uint64_t total_weight = 0;
    double probability(size_t row) const {
      return static_cast<double>(rows[row].weight) / static_cast<double>(total_weight);
    }
  };
  const std::vector<Rule>& rules() const { return rules_; }
  size_t variables() const { return variables_; }

 private:
  std::vector<Rule> rules_;
  size_t variables_ = 0;
};

// The grammar of the embedded corpus: short stories of three or four paragraphs.
std::string_view stories_description();

}  // namespace lathe
