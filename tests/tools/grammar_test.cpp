// The grammar behind the embedded corpus: its entropy is exact, and every text has one derivation.
#include "tools/corpus/grammar.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cmath>
#include <map>
#include <set>

#include "kernels/device/error.h"

namespace lathe {
namespace {

// Entropy and mean length from the list of all texts. Equal texts are added up, so that an
// ambiguous grammar shows.
GrammarExpectation by_brute_force(const Grammar& grammar, size_t* duplicates) {
  std::map<std::string, double> probability;
  const auto texts = grammar.enumerate(200'000);
  for (const auto& [text, p] : texts) probability[text] += p;
  *duplicates = texts.size() - probability.size();
  GrammarExpectation result;
  double total = 0;
  for (const auto& [text, p] : probability) {
    total += p;
    result.nats -= p * std::log(p);
    result.characters += p * static_cast<double>(text.size());
  }
  EXPECT_NEAR(total, 1, 1e-9);
  return result;
}

void expect_equal(const GrammarExpectation& formula, const GrammarExpectation& brute_force) {
  EXPECT_NEAR(formula.nats, brute_force.nats, 1e-9 * (1 + brute_force.nats));
  EXPECT_NEAR(formula.characters, brute_force.characters, 1e-9 * brute_force.characters);
}

constexpr const char* kSmall = R"(
story
  3* {who=person} met {other=person}. {deed} {who.They} {did}.\n
  {who=person} and \
      {other=person} {did}.\n
deed
  2* Then came {guest}.
  Nothing happened.
guest
  {pet=animal}, {pet.many} and {pet.many}
  {day} itself
person(name, they, secret)
  Anna | she | {guest}
  Tom | he | a long {day} with {pet=animal}
  Zeno | they | nothing
animal(one, many)
  2* a cat | cats
  a mouse | mice
day:
  Monday, Tuesday,
  Sunday
did
  2* laughed
  had {who.secret} with {other.name}
)";

TEST(Grammar, EntropyAndLengthMatchBruteForce) {
  const Grammar grammar(kSmall);
  size_t duplicates = 0;
  const GrammarExpectation brute_force = by_brute_force(grammar, &duplicates);
  EXPECT_EQ(duplicates, 0u);
  EXPECT_EQ(grammar.ambiguity(), "");
  expect_equal(grammar.expectation(), brute_force);
}

TEST(Grammar, EntropyOfAFairCoinIsOneBit) {
  const Grammar grammar("coin\n  heads\n  tails\n");
  EXPECT_NEAR(grammar.expectation().bits_per_character(), 0.2, 1e-15);
  EXPECT_NEAR(grammar.expectation().nats, std::log(2), 1e-15);
}

TEST(Grammar, EveryTextOfASmallGrammarHasOneDerivation) {
  const Grammar grammar(kSmall);
  const auto texts = grammar.enumerate(200'000);
  ASSERT_GT(texts.size(), 100u);
  for (size_t i = 0; i < texts.size(); i += 1 + texts.size() / 500) {
    EXPECT_EQ(grammar.derivations(texts[i].first), 1u) << texts[i].first;
  }
  EXPECT_EQ(grammar.derivations(texts[0].first + texts[1].first), 1u);
  EXPECT_EQ(grammar.derivations(texts[0].first + "x"), 0u);
  EXPECT_EQ(grammar.derivations(""), 0u);
}

TEST(Grammar, AmbiguityIsFoundByTheProofByTheParserAndByBruteForce) {
  const Grammar grammar("s\n  {a}{b}.\na\n  x\n  xy\nb\n  z\n  yz\n");
  EXPECT_NE(grammar.ambiguity().find("rule 'a'"), std::string::npos) << grammar.ambiguity();
  EXPECT_EQ(grammar.derivations("xyz."), 2u);
  EXPECT_EQ(grammar.derivations("xyz.xyz."), 4u);
  EXPECT_EQ(grammar.derivations("xz."), 1u);
  size_t duplicates = 0;
  const double true_nats = by_brute_force(grammar, &duplicates).nats;
  EXPECT_EQ(duplicates, 1u);
  EXPECT_LT(true_nats, grammar.expectation().nats - 0.1);  // the formula counts choices
}

TEST(Grammar, AmbiguityOfDocumentsInARowIsFound) {
  // Each document has one derivation, but "aa" may be one document or two.
  const Grammar grammar("s\n  a\n  aa\n");
  EXPECT_NE(grammar.ambiguity(), "");
  EXPECT_EQ(grammar.derivations("aa"), 2u);
}

TEST(Grammar, ARowThatDoesNotShowIsAmbiguous) {
  const Grammar grammar("s\n  {x=t} {x.b}.\nt(a, b)\n  same | one\n  same | two\n");
  EXPECT_NE(grammar.ambiguity(), "");
}

TEST(Grammar, CapitalsReachTheFirstLetterThroughRules) {
  const Grammar grammar(
      "s\n  {Outer} {x=t}{x.Low}.\nouter\n  {inner} end\ninner\n  word\n"
      "t(a, low)\n  A | {inner}s\n");
  EXPECT_EQ(grammar.enumerate(10).at(0).first, "Word end AWords.");
}

TEST(Grammar, MistakesInADescriptionAreNamed) {
  const std::map<std::string, std::string> mistakes = {
      {"", "no rule"},
      {"s\n", "no alternative"},
      {"s\n  {t}\n", "no rule 't'"},
      {"s\n  {t\n", "not closed"},
      {"s\n  {x.y}\n", "nothing binds 'x'"},
      {"s\n  a {t}\nt\n  b {s}\n", "uses itself"},
      {"s\n  {x.a}{x=t}\nt(a, b)\n  1 | 2\n", "none is bound"},
      {"s\n  {x=t}{x.c}\nt(a, b)\n  1 | 2\n", "no column 'c'"},
      {"s\n  {x=t}{x=u}\nt\n  1\nu\n  2\n", "two tables"},
      {"s\n  {x=t}\nt(a, b)\n  1\n", "needs 2 columns"},
      {"s\n  0* a\n", "positive weight"},
      {"s\n  a\ns\n  b\n", "twice"},
      {"s\n  caf\xc3\xa9\n", "no place"},
  };
  for (const auto& [description, what] : mistakes) {
    try {
      const Grammar grammar(description);
      ADD_FAILURE() << "accepted: " << description;
    } catch (const CheckError& error) {
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
    }
  }
}

TEST(GrammarRandom, IsTheStandardsGeneratorWithRejection) {
  GrammarRandom standard(5489);
  for (int i = 0; i < 9999; ++i) standard.below(uint64_t{1} << 63);
  EXPECT_EQ(standard.below(uint64_t{1} << 63), 9981545732273789042u % (uint64_t{1} << 63));
  GrammarRandom random(1);
  std::vector<int> seen(3, 0);
  for (int i = 0; i < 30000; ++i) ++seen[random.below(3)];
  for (int count : seen) EXPECT_NEAR(count, 10000, 400);
  // A bound just above half of the range rejects almost half of the draws, and stays below it.
  const uint64_t bound = (uint64_t{1} << 63) + 1;
  for (int i = 0; i < 100; ++i) EXPECT_LT(random.below(bound), bound);
}

TEST(Stories, AreProvenUnambiguous) {
  EXPECT_EQ(Grammar(stories_description()).ambiguity(), "");
}

TEST(Stories, EveryDerivationOfTheSmallRulesWritesATextOfItsOwn) {
  const Grammar whole(stories_description());
  size_t checked = 0;
  for (const auto& rule : whole.rules()) {
    try {
      const Grammar part("start\n  {" + rule.name + "}\n" + std::string(stories_description()));
      size_t duplicates = 0;
      const GrammarExpectation brute_force = by_brute_force(part, &duplicates);
      EXPECT_EQ(duplicates, 0u) << rule.name;
      expect_equal(part.expectation(), brute_force);
      ++checked;
    } catch (const CheckError&) {  // too large, or it uses a name that its caller binds
    }
  }
  EXPECT_GT(checked, 20u);
}

TEST(Stories, ASampledTextHasOneDerivation) {
  const Grammar grammar(stories_description());
  GrammarRandom random(3);
  std::string text;
  for (int story = 0; story < 100; ++story) grammar.sample(random, text);
  EXPECT_EQ(grammar.derivations(text), 1u);
  std::string wrong = text;
  wrong[text.size() / 2] = '#';
  EXPECT_EQ(grammar.derivations(wrong), 0u);
  EXPECT_EQ(grammar.derivations(text.substr(0, text.size() - 1)), 0u);
}

TEST(Stories, SampledInformationAndLengthAgreeWithTheExpectation) {
  const Grammar grammar(stories_description());
  const GrammarExpectation expected = grammar.expectation();
  GrammarRandom random(11);
  constexpr int kStories = 4000;
  double nats = 0, nats2 = 0, length = 0, length2 = 0;
  for (int i = 0; i < kStories; ++i) {
    std::string story;
    const double information = grammar.sample(random, story);
    const double size = static_cast<double>(story.size());
    nats += information / kStories;
    nats2 += information * information / kStories;
    length += size / kStories;
    length2 += size * size / kStories;
  }
  EXPECT_NEAR(nats, expected.nats, 5 * std::sqrt((nats2 - nats * nats) / kStories));
  EXPECT_NEAR(length, expected.characters, 5 * std::sqrt((length2 - length * length) / kStories));
}

TEST(Stories, TheDefaultTextIsTheSameEverywhere) {
  const Grammar grammar(stories_description());
  GrammarRandom random(1);
  std::string text;
  while (text.size() < size_t{4} << 20) {
    const size_t begin = text.size();
    grammar.sample(random, text);
    EXPECT_EQ(text.find("\n\n", begin), text.size() - 2);  // an empty line ends the story
  }
  const std::set<char> vocabulary(text.begin(), text.end());
  EXPECT_GE(vocabulary.size(), 60u);
  EXPECT_LE(vocabulary.size(), 70u);
  EXPECT_EQ(XXH3_64bits(text.data(), text.size()), 16882694897150250789u);
}

}  // namespace
}  // namespace lathe
