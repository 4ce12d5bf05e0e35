#include "src/data/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>

#include "src/data/bpe.h"
#include "src/data/pretokenizer.h"
#include "src/data/utf8.h"
#include "src/io/json.h"
#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kGolden = LATHE_GOLDEN;
const fs::path kSmall = kGolden / "small";

json golden(const std::string& name) {
  return parse_json(read_text(kGolden / name));
}

// The folder with GPT-2's vocabulary and tiny Shakespeare, or a reason to skip.
fs::path test_data() {
  const char* folder = std::getenv("LATHE_TEST_DATA");
  return folder ? folder : "";
}
#define SKIP_WITHOUT_TEST_DATA()                                                           \
  if (test_data().empty())                                                                 \
  GTEST_SKIP() << "LATHE_TEST_DATA is not set: it names a folder with gpt2/encoder.json, " \
                  "gpt2/vocab.bpe and tinyshakespeare.txt"

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    words.emplace_back(text.substr(0, next_word(text)));
    text.remove_prefix(words.back().size());
  }
  return words;
}

void expect_golden_ids(const Tokenizer& tokenizer, const char* key) {
  const auto encoder = tokenizer.encoder(SpecialTokens::as_text);
  for (int pass = 0; pass < 2; ++pass) {  // the second time from the cache
    for (const json& c : golden("tokenizer.json")) {
      const auto text = c["text"].get<std::string>();
      std::vector<int32_t> ids;
      encoder->encode(text, ids);
      EXPECT_EQ(ids, c[key].get<std::vector<int32_t>>()) << text;
      EXPECT_EQ(tokenizer.decode(ids), text);
    }
  }
}

TEST(Gpt2, EncodesHardTextAsTheOracle) {
  SKIP_WITHOUT_TEST_DATA();
  const auto tokenizer = load_tokenizer(test_data() / "gpt2");
  EXPECT_EQ(tokenizer->kind(), "bpe");
  EXPECT_EQ(tokenizer->vocab_size(), 50257);
  EXPECT_EQ(tokenizer->end_of_text(), 50256);
  EXPECT_EQ(tokenizer->token(50256), "<|endoftext|>");
  expect_golden_ids(*tokenizer, "gpt2");
}

TEST(Gpt2, EncodesTinyShakespeareAsTheOracle) {
  SKIP_WITHOUT_TEST_DATA();
  const auto tokenizer = load_tokenizer(test_data() / "gpt2" / "vocab.bpe");
  const std::string text = read_text(test_data() / "tinyshakespeare.txt");
  const std::vector<int32_t> ids = tokenizer->encode(text);
  uint64_t hash = 0xCBF29CE484222325;
  for (int32_t id : ids) {
    for (int byte : {id & 255, id >> 8})
      hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001B3;
  }
  const json expected = golden("tinyshakespeare.json");
  EXPECT_EQ(ids.size(), expected["tokens"].get<size_t>());
  EXPECT_EQ(fmt::format("{:016x}", hash), expected["fnv1a"].get<std::string>());
  EXPECT_EQ(tokenizer->decode(ids), text);
}

TEST(Gpt2, SurvivesItsOwnTokenizerJson) {
  SKIP_WITHOUT_TEST_DATA();
  const auto tokenizer = load_tokenizer(test_data() / "gpt2");
  TempDir dir;
  save_tokenizer(*tokenizer, dir.path());
  const auto saved = load_tokenizer(dir.path());
  EXPECT_EQ(saved->vocab_size(), 50257);
  EXPECT_EQ(saved->end_of_text(), 50256);
  expect_golden_ids(*saved, "gpt2");
  EXPECT_EQ(saved->to_json(), tokenizer->to_json());
}

TEST(SmallBpe, EncodesHardTextAsTheOracleFromEveryLayout) {
  expect_golden_ids(*load_tokenizer(kSmall), "small");
  expect_golden_ids(*load_tokenizer(kSmall / "vocab.json"), "small");
  expect_golden_ids(*load_tokenizer(kSmall / "merges.txt"), "small");
  TempDir openai, saved;
  fs::copy_file(kSmall / "vocab.json", openai / "encoder.json");
  fs::copy_file(kSmall / "merges.txt", openai / "vocab.bpe");
  expect_golden_ids(*load_tokenizer(openai.path()), "small");
  save_tokenizer(*load_tokenizer(kSmall), saved.path());
  expect_golden_ids(*load_tokenizer(saved.path()), "small");
  expect_golden_ids(*load_tokenizer(saved / "tokenizer.json"), "small");
  json file = parse_json(read_text(saved / "tokenizer.json"));
  for (json& merge : file["model"]["merges"]) {  // newer files have pairs
    const auto line = merge.get<std::string>();
    const size_t space = line.find(' ');
    merge = {line.substr(0, space), line.substr(space + 1)};
  }
  expect_golden_ids(*parse_tokenizer_json(file.dump(), "pairs"), "small");
}

// encoder.py's bpe(), as written there: find the lowest pair, join it everywhere, repeat.
std::vector<std::string> obvious_bpe(
    std::string_view word, const std::map<std::pair<std::string, std::string>, int>& rank) {
  std::vector<std::string> parts;
  for (char c : word) parts.emplace_back(1, c);
  while (true) {
    std::pair<std::string, std::string> best;
    int best_rank = INT32_MAX;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = rank.find({parts[i], parts[i + 1]});
      if (found == rank.end() || found->second >= best_rank) continue;
      best_rank = found->second;
      best = found->first;
    }
    if (best_rank == INT32_MAX) return parts;
    std::vector<std::string> joined;
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool here =
          i + 1 < parts.size() && parts[i] == best.first && parts[i + 1] == best.second;
      joined.push_back(here ? parts[i] + parts[i + 1] : parts[i]);
      i += here;
    }
    parts = joined;
  }
}

// A random tokenizer over a few letters, with merges of merges, against the obvious algorithm.
TEST(Bpe, MergesAsTheObviousAlgorithm) {
  std::mt19937 random(7);
  const json vocabulary = parse_json(read_text(kSmall / "vocab.json"));
  for (int round = 0; round < 30; ++round) {
    BpeTokenizer::Parts parts;
    std::vector<std::string> pieces = {"a", "b", "c"};
    std::map<std::pair<std::string, std::string>, int> rank;
    int64_t next_id = 0;
    for (const auto& [name, id] : vocabulary.items()) {
      if (count_code_points(name) == 1) parts.vocabulary.emplace_back(name, next_id++);
    }
    for (int i = 0; i < 30; ++i) {
      const std::string left = pieces[random() % pieces.size()];
      const std::string right = pieces[random() % pieces.size()];
      if (left.size() + right.size() > 9 || rank.contains({left, right})) continue;
      rank[{left, right}] = static_cast<int>(parts.merges.size());
      parts.merges.emplace_back(left, right);
      if (std::find(pieces.begin(), pieces.end(), left + right) != pieces.end()) continue;
      pieces.push_back(left + right);
      parts.vocabulary.emplace_back(left + right, next_id++);
    }
    const BpeTokenizer tokenizer(parts, "random");
    const auto encoder = tokenizer.encoder(SpecialTokens::as_text);
    for (int i = 0; i < 200; ++i) {
      std::string word;
      for (size_t n = 1 + random() % 80; n > 0; --n) word += static_cast<char>('a' + random() % 3);
      std::vector<int32_t> ids;
      encoder->encode(word, ids);
      std::vector<std::string> got;
      for (int32_t id : ids) got.emplace_back(tokenizer.token(id));
      ASSERT_EQ(got, obvious_bpe(word, rank)) << word;
    }
  }
}

TEST(Bpe, TakesVeryLongWords) {
  const auto tokenizer = load_tokenizer(kSmall);
  for (const char* unit : {"a", " ", "ab", "\n", "=", "\xe4\xbd\xa0"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(Bpe, RefusesInvalidUtf8) {
  const auto tokenizer = load_tokenizer(kSmall);
  expect_contains(user_error([&] { tokenizer->encode("abc\xff"); }), "not UTF-8 at byte 3");
  EXPECT_THROW(tokenizer->token(556), CheckError);
  EXPECT_THROW(tokenizer->token(-1), CheckError);
}

TEST(Bpe, KnowsSpecialTokensOutsideTheVocabulary) {
  json file = parse_json(load_tokenizer(kSmall)->to_json());
  EXPECT_EQ(load_tokenizer(kSmall)->end_of_text(), std::nullopt);
  file["added_tokens"] = {{{"id", 556}, {"content", "<|endoftext|>"}},
                          {{"id", 557}, {"content", "\xe4\xbd\xa0 <x>"}}};
  const auto tokenizer = parse_tokenizer_json(file.dump(), "special");
  EXPECT_EQ(tokenizer->vocab_size(), 558);
  EXPECT_EQ(tokenizer->end_of_text(), 556);
  EXPECT_EQ(tokenizer->token(557), "\xe4\xbd\xa0 <x>");
  EXPECT_EQ(parse_tokenizer_json(tokenizer->to_json(), "again")->to_json(), tokenizer->to_json());
  expect_golden_ids(*tokenizer, "small");
  EXPECT_GT(tokenizer->encode("<|endoftext|>").size(), 1u) << "ordinary text, as for OpenAI";
  EXPECT_EQ(tokenizer->encode("<|endoftext|>", SpecialTokens::as_tokens),
            (std::vector<int32_t>{556}));
}

// The small BPE with added tokens of every kind, from id 556 on.
const char* const kAddedTokens = R"([
  {"id": 556, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": false, "special": true},
  {"id": 557, "content": "<mask>", "single_word": false, "lstrip": true, "rstrip": false,
   "normalized": false, "special": true},
  {"id": 558, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": true,
   "normalized": false, "special": true},
  {"id": 559, "content": "  ", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": true, "special": false},
  {"id": 560, "content": "    ", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": true, "special": false},
  {"id": 561, "content": "ing", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": false, "special": false},
  {"id": 562, "content": "<x", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": false, "special": false},
  {"id": 563, "content": "x>你", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": true, "special": false},
  {"id": 564, "content": "<|end", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": true, "special": false}])";

std::unique_ptr<Tokenizer> small_with_added_tokens() {
  json file = parse_json(load_tokenizer(kSmall)->to_json());
  file["added_tokens"] = parse_json(kAddedTokens);
  return parse_tokenizer_json(file.dump(), "added");
}

// The ids are those of Hugging Face's tokenizers 0.23.3, with and without encode_special_tokens.
TEST(Bpe, MatchesAddedTokensAsTheOracle) {
  const auto tokenizer = small_with_added_tokens();
  struct Case {
    std::string text;
    std::vector<int32_t> as_text, as_tokens;
  };
  const std::vector<Case> cases = {
      {"a<|endoftext|>b", {64, 564, 78, 335, 334, 342, 65}, {64, 556, 65}},
      {"walking  to   the     end",
       {86, 64, 75, 74, 561, 559, 83, 78, 559, 352, 560, 220, 311, 67},
       {86, 64, 75, 74, 561, 559, 83, 78, 559, 352, 560, 220, 311, 67}},
      {"x \n<mask> y", {87, 220, 198, 27, 76, 64, 82, 74, 29, 220, 88}, {87, 557, 220, 88}},
      {"x <pad> \n y", {87, 220, 27, 79, 64, 67, 29, 377, 220, 88}, {87, 220, 558, 88}},
      {"<x>你 x>你", {562, 29, 160, 121, 254, 220, 563}, {562, 29, 160, 121, 254, 220, 563}},
      {"<|end of <|endoftext|",
       {564, 220, 78, 69, 220, 564, 78, 335, 334, 91},
       {564, 220, 78, 69, 220, 564, 78, 335, 334, 91}},
      {"<mask><pad>  <mask>",
       {27, 76, 64, 82, 74, 29, 27, 79, 64, 67, 29, 559, 27, 76, 64, 82, 74, 29},
       {557, 558, 557}},
      {"singing's ing", {82, 561, 561, 354, 220, 561}, {82, 561, 561, 354, 220, 561}},
      {"<|endoftext|>  <mask>  ",
       {564, 78, 335, 334, 342, 559, 27, 76, 64, 82, 74, 29, 559},
       {556, 557, 559}},
      {" <pad>  ing", {220, 27, 79, 64, 67, 29, 559, 561}, {220, 558, 561}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(tokenizer->encode(c.text), c.as_text) << c.text;
    EXPECT_EQ(tokenizer->encode(c.text, SpecialTokens::as_tokens), c.as_tokens) << c.text;
    EXPECT_EQ(tokenizer->decode(c.as_text), c.text);
  }
  EXPECT_EQ(parse_json(tokenizer->to_json())["added_tokens"], parse_json(kAddedTokens));
}

// Random text of pieces of added tokens: a cut at safe_cut() changes no token, whatever follows.
TEST(Bpe, AddedTokensAreNotCut) {
  const auto tokenizer = small_with_added_tokens();
  const std::vector<std::string> pieces = {"<|end", "oftext|>", "<|endof", "<x", ">",  "你", "x",
                                           "ing",   "in",       " ",       "\n", "a1", "!"};
  const auto encoder = tokenizer->encoder(SpecialTokens::as_text);
  std::mt19937 random(3);
  int cuts = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (int i = 0; i < 8; ++i) text += pieces[random() % pieces.size()];
    const std::string seen = text.substr(0, random() % text.size());
    if (valid_utf8_prefix(seen) != seen.size()) continue;
    const size_t cut = tokenizer->safe_cut(seen);
    if (cut == 0) continue;
    ++cuts;
    std::vector<int32_t> parts, whole;
    encoder->encode(text.substr(0, cut), parts);
    encoder->encode(text.substr(cut), parts);
    encoder->encode(text, whole);
    ASSERT_EQ(parts, whole) << text << " cut at " << cut;
  }
  EXPECT_GT(cuts, 5'000);
}

TEST(SameTokens, ComparesWhatEncodesAndDecodes) {
  const auto small = load_tokenizer(kSmall);
  const auto with = [&](const char* patch) {
    json file = parse_json(small->to_json());
    file.merge_patch(parse_json(patch));
    return parse_tokenizer_json(file.dump(), "patched");
  };
  const auto added = [&](bool special, bool normalized) {
    return with(fmt::format(R"({{"added_tokens": [{{"id": 556, "content": "<x>", "special": {},
                                "normalized": {}}}]}})",
                            special, normalized)
                    .c_str());
  };
  EXPECT_TRUE(same_tokens(*small, *parse_tokenizer_json(small->to_json(), "copy")));
  EXPECT_TRUE(same_tokens(*added(true, false), *added(true, true)));
  EXPECT_FALSE(same_tokens(*small, *added(true, false)));
  EXPECT_FALSE(same_tokens(*added(true, false), *added(false, false)));
  EXPECT_FALSE(same_tokens(*small, *with(R"({"model": {"merges": []}, "decoder": null})")));
  EXPECT_FALSE(same_tokens(*small, *with(R"({"model": {"vocab": {"!": 1, "\"": 0}}})")));

  const auto characters = make_char_tokenizer({'a', 'b'}, "text");
  const auto old =
      parse_tokenizer_json(R"({"type": "char", "version": 1, "characters": "ab"})", "old");
  EXPECT_TRUE(same_tokens(*characters, *old));
  EXPECT_FALSE(same_tokens(*characters, *make_char_tokenizer({'a', 'c'}, "text")));
  EXPECT_FALSE(same_tokens(*characters, *make_char_tokenizer({'a', 'b', 'c'}, "text")));
  EXPECT_FALSE(same_tokens(*characters, *small));
}

// Counts and hash come from make_unicode_classes.py, whose --check compares the table with
// tiktoken's and Hugging Face's, code point by code point.
TEST(Pretokenizer, ClassesAreThoseOfUnicode16) {
  std::map<CharClass, int> count;
  uint64_t hash = 0xCBF29CE484222325;
  for (int32_t c = 0; c < 0x110000; ++c) {
    ++count[char_class(c)];
    hash = (hash ^ static_cast<uint64_t>(char_class(c))) * 0x100000001B3;
  }
  EXPECT_EQ(count[CharClass::letter], 141028);
  EXPECT_EQ(count[CharClass::number], 1911);
  EXPECT_EQ(count[CharClass::space], 25);
  EXPECT_EQ(hash, 0xb782c966f1f1966a);
  EXPECT_EQ(char_class(0x2EBF0), CharClass::letter) << "new in Unicode 15.1";
  EXPECT_EQ(char_class(0x1C89), CharClass::letter) << "new in Unicode 16.0";
  EXPECT_EQ(char_class(0x10D40), CharClass::number) << "new in Unicode 16.0";
  EXPECT_EQ(char_class(0x088F), CharClass::other) << "new in Unicode 17.0";
  EXPECT_EQ(char_class(-1), CharClass::other);
}

TEST(Pretokenizer, FollowsTheExpression) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words_of("Hello world's  end\n\n x"),
            (Words{"Hello", " world", "'s", " ", " end", "\n\n", " x"}));
  EXPECT_EQ(words_of("a  "), (Words{"a", "  "}));
  EXPECT_EQ(words_of("\t\ta"), (Words{"\t", "\t", "a"}));
  EXPECT_EQ(words_of("x 's"), (Words{"x", " '", "s"}));
  EXPECT_EQ(words_of("''re"), (Words{"''", "re"}));
  EXPECT_EQ(words_of("12ab!?"), (Words{"12", "ab", "!?"}));
  EXPECT_EQ(words_of("\x1c\x1d"
                     "a"),
            (Words{"\x1c\x1d", "a"}))
      << "no white space";
  EXPECT_EQ(words_of("a\xc2\x85\xe3\x80\x80"
                     "b"),
            (Words{"a", "\xc2\x85", "\xe3\x80\x80", "b"}));
}

// Every text of up to six characters over one or two of each class: a cut at the boundary of any
// prefix leaves the words unchanged.
TEST(Pretokenizer, BoundariesDoNotChangeTheWords) {
  const std::vector<std::string> alphabet = {"s", "e", "r", "1", "'", "!", " ", "\n"};
  std::vector<std::string> texts = {""};
  int64_t cuts = 0;
  for (int length = 1; length <= 6; ++length) {
    std::vector<std::string> longer;
    for (const auto& text : texts) {
      for (const auto& c : alphabet) longer.push_back(text + c);
    }
    texts = std::move(longer);
    for (const auto& text : texts) {
      const auto words = words_of(text);
      for (size_t seen = 1; seen <= text.size(); ++seen) {
        const size_t cut = last_word_boundary(std::string_view(text).substr(0, seen));
        if (cut == 0) continue;
        ++cuts;
        auto parts = words_of(text.substr(0, cut));
        for (auto& word : words_of(text.substr(cut))) parts.push_back(word);
        ASSERT_EQ(parts, words) << text << " cut at " << cut;
      }
    }
  }
  EXPECT_GT(cuts, 100000);
}

TEST(Char, SortsTheCodePoints) {
  const auto tokenizer = make_char_tokenizer({'b', 0x1F600, 'a', 0, 0x4F60, 'b'}, "text");
  EXPECT_EQ(tokenizer->kind(), "char");
  EXPECT_EQ(tokenizer->vocab_size(), 5);
  EXPECT_EQ(tokenizer->end_of_text(), std::nullopt);
  const std::string text("ab\0b\xf0\x9f\x98\x80\xe4\xbd\xa0", 11);
  EXPECT_EQ(tokenizer->encode(text), (std::vector<int32_t>{1, 2, 0, 2, 4, 3}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  TempDir dir;
  save_tokenizer(*tokenizer, dir.path());
  EXPECT_EQ(load_tokenizer(dir.path())->encode(text), tokenizer->encode(text));
}

// transformers 4.57 and 5.24 open this text, through AutoTokenizer with a checkpoint's
// tokenizer_config.json, and give the same ids.
TEST(Char, IsWrittenAsABpeWithoutMerges) {
  const auto tokenizer = make_char_tokenizer({'b', '\n', '"', 0xe9, 0}, "text");
  const std::string file = tokenizer->to_json();
  EXPECT_EQ(parse_json(file), parse_json(R"({
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "ignore_merges": false,
              "vocab": {"\u0000": 0, "\n": 1, "\"": 2, "b": 3, "\u00e9": 4}, "merges": []}})"));
  const auto opened = parse_tokenizer_json(file, "written");
  EXPECT_EQ(opened->kind(), "char");
  EXPECT_EQ(opened->to_json(), file);
  // transformers writes it back with a template that adds nothing; other programs use another
  // order.
  json other = parse_json(file);
  other["post_processor"] = parse_json(
      R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
          "pair": [], "special_tokens": {}})");
  other["model"]["vocab"] = {{"b", 0}, {"\xc3\xa9", 1}, {"a", 2}};
  EXPECT_EQ(parse_tokenizer_json(other.dump(), "other")->encode("ab\xc3\xa9"),
            (std::vector<int32_t>{2, 0, 1}));
}

TEST(Char, OpensTheFormerFile) {
  const auto tokenizer = parse_tokenizer_json(
      "{\n \"type\": \"char\",\n \"version\": 1,\n \"characters\": \"\\n a\\u00e9\"\n}\n", "old");
  EXPECT_EQ(tokenizer->encode("a\n\xc3\xa9 "), (std::vector<int32_t>{2, 0, 3, 1}));
  EXPECT_EQ(tokenizer->to_json(), make_char_tokenizer({'a', 0xe9, ' ', '\n'}, "new")->to_json());
}

TEST(Char, NamesWhatItCannotEncode) {
  const auto tokenizer = make_char_tokenizer({'a', 'c'}, "text");
  expect_contains(user_error([&] { tokenizer->encode("acb"); }), "U+0062 at byte 2");
  expect_contains(user_error([&] { tokenizer->encode("a\xe4\xbd\xa0"); }), "U+4F60 at byte 1");
  expect_contains(user_error([&] { tokenizer->encode("ac\x80"); }), "not UTF-8 at byte 2");
}

TEST(Char, HoldsAtMost65536Symbols) {
  std::vector<int32_t> code_points;
  for (int32_t c = 0; c < 65536 + 0x800; ++c) {
    if (c < 0xd800 || c >= 0xe000) code_points.push_back(c);
  }
  const auto tokenizer = make_char_tokenizer(code_points, "text");
  EXPECT_EQ(tokenizer->vocab_size(), 65536);
  EXPECT_EQ(parse_tokenizer_json(tokenizer->to_json(), "all")->vocab_size(), 65536);
  code_points.push_back(0x20000);
  expect_contains(user_error([&] { make_char_tokenizer(code_points, "big.txt"); }),
                  "big.txt holds 65537 different characters");
  expect_contains(user_error([] { make_char_tokenizer({}, "none.txt"); }), "none.txt holds no");
}

TEST(StreamDecoder, HoldsBackIncompleteCharacters) {
  const auto tokenizer = load_tokenizer(kSmall);
  std::string all;
  for (const json& c : golden("tokenizer.json")) all += c["text"].get<std::string>();
  StreamDecoder decoder(*tokenizer);
  std::string printed;
  for (int32_t id : tokenizer->encode(all)) {
    const std::string part = decoder.next(id);
    ASSERT_EQ(valid_utf8_prefix(part), part.size());
    printed += part;
  }
  EXPECT_EQ(printed + decoder.finish(), all);
}

TEST(StreamDecoder, ReplacesInvalidBytes) {
  const auto tokenizer = load_tokenizer(kSmall);
  const auto byte = [&](unsigned char b) {
    return dynamic_cast<const BpeTokenizer&>(*tokenizer).id_of_byte(b);
  };
  StreamDecoder decoder(*tokenizer);
  std::string printed;
  for (int b : {0xff, 0x61, 0xe4, 0xbd, 0x62, 0xc3, 0xa9, 0x80, 0xf0, 0x9f}) {
    printed += decoder.next(byte(static_cast<unsigned char>(b)));
  }
  EXPECT_EQ(printed,
            "\xEF\xBF\xBD"
            "a\xEF\xBF\xBD\xEF\xBF\xBD"
            "b\xc3\xa9\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(LoadTokenizer, NamesWhatIsMissing) {
  TempDir dir;
  expect_contains(user_error([&] { load_tokenizer(dir / "none"); }), "there is no tokenizer at");
  expect_contains(user_error([&] { load_tokenizer(dir.path()); }), "holds no tokenizer.json");
  fs::copy_file(kSmall / "merges.txt", dir / "merges.txt");
  expect_contains(user_error([&] { load_tokenizer(dir.path()); }), "vocab.json: No such file");
  fs::copy_file(kSmall / "vocab.json", dir / "encoder.json");
  expect_contains(user_error([&] { load_tokenizer(dir / "encoder.json"); }),
                  "vocab.bpe: No such file");
}

// Each damages a good tokenizer.json in one way; the message must name the file and the damage.
TEST(LoadTokenizer, RefusesDamagedOrForeignJson) {
  const json good = parse_json(load_tokenizer(kSmall)->to_json());
  struct Case {
    std::string patch, said;  // a JSON merge patch
  };
  const std::vector<Case> cases = {
      {R"({"model": null})", "it has no model"},
      {R"({"model": {"type": "Unigram"}})", "its model is not BPE"},
      {R"({"model": {"vocab": null}})", "it has no vocabulary"},
      {R"({"model": {"vocab": []}})", "holds no vocabulary"},
      {R"({"model": {"merges": "x y"}})", "holds no list of merges"},
      {R"({"model": {"merges": ["xy"]}})", "\"xy\" is not two tokens"},
      {R"({"model": {"merges": ["x  y"]}})", "is not two tokens"},
      {R"({"model": {"merges": [["x"]]}})", "is not two tokens"},
      {R"({"model": {"merges": [7]}})", "is not two tokens"},
      {R"({"model": {"merges": ["zzz y"]}})", "lacks the token \"zzz\""},
      {R"({"model": {"merges": ["! }"]}})", "lacks the token \"!}\""},
      {R"({"model": {"vocab": {"!": null}}})", "has 555 tokens, but ids up to 555"},
      {R"({"model": {"vocab": {"!": 1}}})", "the same id 1"},
      {R"({"model": {"vocab": {"!": -1}}})", "the id -1"},
      {R"({"model": {"vocab": {"!": 65536}}})", "the id 65536"},
      {R"({"model": {"vocab": {"!": 9223372036854775807}}})", "the id 9223372036854775807"},
      {R"({"model": {"vocab": {"!": 18446744073709551615}}})", "the id -1"},
      {R"({"model": {"vocab": {"!": 1.5}}})", "not a whole number"},
      {R"({"model": {"vocab": {"!": "0"}}})", "not a whole number"},
      {R"({"model": {"vocab": {"gap": 600}}})", "ids up to 600"},
      {R"({"model": {"vocab": {"": 556}}})", "a token without text"},
      {R"({"model": {"vocab": {"!": null, "x!": 0}},
           "added_tokens": [{"id": 556, "content": "!"}]})",
       "no token for 1 of the 256 bytes (0x21 is"},
      {R"({"model": {"byte_fallback": true}})", "byte_fallback"},
      {R"({"model": {"ignore_merges": true}})", "ignore_merges"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})", "end_of_word_suffix"},
      {R"({"normalizer": {"type": "NFC"}})", "normalizer"},
      {R"({"pre_tokenizer": {"type": "Split"}})", "not ByteLevel"},
      {R"({"pre_tokenizer": {"add_prefix_space": true}})", "add_prefix_space"},
      {R"({"pre_tokenizer": {"use_regex": false}})", "GPT-2's expression"},
      {R"({"pre_tokenizer": null})", "no pre_tokenizer"},
      {R"({"added_tokens": {}})", "added_tokens is not a list"},
      {R"({"added_tokens": [{"id": 556}]})", "without id and content"},
      {R"({"added_tokens": [{"id": 3, "content": "!"}]})", "the ids 0 and 3"},
      {R"({"added_tokens": [{"id": 3, "content": "<x>"}]})", "the same id 3"},
      {R"({"added_tokens": [{"id": 65536, "content": "<x>"}]})", "<x> the id 65536"},
      {R"({"added_tokens": [{"id": 556, "content": "<x>", "special": 1}]})", "neither true nor"},
      {R"({"added_tokens": [{"id": 556, "content": "<x>", "single_word": true}]})",
       "the added token \"<x>\" with single_word"},
      {R"({"added_tokens": [{"id": 556, "content": "<x>", "special": false, "lstrip": true}]})",
       "the added token \"<x>\" with lstrip"},
      {R"({"added_tokens": [{"id": 556, "content": "<x>", "special": false, "rstrip": true}]})",
       "the added token \"<x>\" with rstrip"},
      {R"({"added_tokens": [{"id": 94, "content": "\u00a1"}]})", "uses for other bytes"},
      {R"({"post_processor": {"type": "TemplateProcessing", "single": [
           {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}})",
       "its post_processor adds tokens"},
      {R"({"post_processor": {"type": "RobertaProcessing"}})", "its post_processor adds tokens"},
      {R"({"type": "char"})", "version"},
      {R"({"type": "char", "version": 2})", "version"},
      {R"({"type": "char", "version": 1})", "characters"},
      {R"({"type": "char", "version": 1, "characters": 7})", "characters"},
      {R"({"type": "char", "version": 1, "characters": ""})", "no characters"},
      {R"({"type": "char", "version": 1, "characters": "ba"})", "does not ascend at byte 1"},
      {R"({"type": "char", "version": 1, "characters": "aa"})", "does not ascend at byte 1"},
  };
  for (const Case& c : cases) {
    json file = good;
    file.merge_patch(parse_json(c.patch));
    const std::string said = user_error([&] { parse_tokenizer_json(file.dump(), "t.json"); });
    expect_contains(said, "t.json");
    expect_contains(said, c.said);
  }
  for (const char* text : {"", "{", "[]", "7", "null", "\xff", "{\"a\": \"\\ud800\"}", "{} x"}) {
    expect_contains(user_error([&] { parse_tokenizer_json(text, "t.json"); }), "t.json");
  }
  const std::string end = good.dump() + '\0';
  expect_contains(user_error([&] { parse_tokenizer_json(end + "x", "t.json"); }), "not valid JSON");
  const std::string twice = R"({"model": {}, "model": {}})";
  expect_contains(user_error([&] { parse_tokenizer_json(twice, "t.json"); }), "occurs twice");
  const std::string deep(1'000'000, '[');
  expect_contains(user_error([&] { parse_tokenizer_json(deep, "t.json"); }), "nested more than");
}

TEST(LoadTokenizer, RefusesDamagedFilesOfCharacters) {
  const json good = parse_json(make_char_tokenizer({'a', 'b'}, "text")->to_json());
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"model": {"vocab": {"ab": 2}}})", "\"ab\" is not one character"},
      {R"({"model": {"vocab": {"": 2}}})", "\"\" is not one character"},
      {R"({"model": {"vocab": {"c": 1}}})", "has the id 1"},
      {R"({"model": {"vocab": {"c": 3}}})", "3 tokens, and \"c\" has the id 3"},
      {R"({"model": {"vocab": {"c": -1}}})", "has the id -1"},
      {R"({"model": {"vocab": {"a": null, "b": null}}})", "no characters"},
      {R"({"model": {"byte_fallback": true}})", "byte_fallback"},
      {R"({"decoder": null})", "its decoder is not Fuse"},
      {R"({"added_tokens": [{"id": 2, "content": "<eos>"}]})", "the added token \"<eos>\""},
  };
  for (const auto& [patch, what] : cases) {
    json file = good;
    file.merge_patch(parse_json(patch));
    const std::string said = user_error([&] { parse_tokenizer_json(file.dump(), "t.json"); });
    expect_contains(said, "t.json");
    expect_contains(said, what);
  }
}

TEST(LoadTokenizer, NamesTheBytesThatATrainedVocabularyLacks) {
  json file = parse_json(load_tokenizer(kSmall)->to_json());
  file["model"]["merges"] = json::array();
  file["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"c", 2}};
  expect_contains(user_error([&] { parse_tokenizer_json(file.dump(), "t.json"); }),
                  "t.json has no token for 253 of the 256 bytes (0x00 is the first)");
}

TEST(LoadTokenizer, RefusesDamagedPairs) {
  const std::string vocabulary = read_text(kSmall / "vocab.json");
  const auto said = [&](std::string_view v, std::string_view m) {
    return user_error([&] { parse_bpe_files(v, m, "vocab.json"); });
  };
  expect_contains(said(vocabulary.substr(0, 100), ""), "not valid JSON");
  expect_contains(said("[]", ""), "holds no vocabulary");
  expect_contains(said("{}", ""), "no token for 256 of the 256 bytes");
  expect_contains(said(vocabulary + std::string("\0 {}", 4), ""), "not valid JSON");
  expect_contains(said(vocabulary, "#version: 0.2\na b c\n"), "\"a b c\" is not two tokens");
  expect_contains(said(vocabulary, "a \n"), "is not two tokens");
  EXPECT_EQ(parse_bpe_files(vocabulary, "", "vocab.json")->encode("ab").size(), 2u);
}

TEST(LoadTokenizer, TakesPairsThatWindowsWrote) {
  const std::string vocabulary = read_text(kSmall / "vocab.json");
  std::string merges;
  for (char c : read_text(kSmall / "merges.txt")) merges += c == '\n' ? "\r\n" : std::string(1, c);
  const std::string mark = "\xef\xbb\xbf";
  expect_golden_ids(*parse_bpe_files(vocabulary, merges, "vocab.json"), "small");
  expect_golden_ids(*parse_bpe_files(mark + vocabulary, mark + merges + "\r\n", "v"), "small");
}

}  // namespace
}  // namespace lathe
