#include "src/data/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "src/data/bpe.h"
#include "src/data/pretokenizer.h"
#include "src/data/utf8.h"
#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kGolden = LATHE_GOLDEN;
const fs::path kSmall = kGolden / "small";

json golden(const std::string& name) {
  return json::parse(read_text(kGolden / name));
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
  const auto encoder = tokenizer.encoder();
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
  json file = json::parse(read_text(saved / "tokenizer.json"));
  for (json& merge : file["model"]["merges"]) {  // newer files have pairs
    const auto line = merge.get<std::string>();
    const size_t space = line.find(' ');
    merge = {line.substr(0, space), line.substr(space + 1)};
  }
  expect_golden_ids(*parse_tokenizer_json(file.dump(), "pairs"), "small");
}

// encoder.py's bpe(), as it is written there: look for the lowest pair, join it everywhere, repeat.
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
  const json vocabulary = json::parse(read_text(kSmall / "vocab.json"));
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
    const auto encoder = tokenizer.encoder();
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
  json file = json::parse(load_tokenizer(kSmall)->to_json());
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
}

// Counts and hash come from make_unicode_classes.py, whose table --check compares with tiktoken's
// and with Hugging Face's, code point by code point.
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

// Every text of up to six characters over one or two of each class: cutting at the boundary that
// any prefix has leaves the words as they are.
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

// Each damages a good tokenizer.json in one way; the sentence must name the file and the damage.
TEST(LoadTokenizer, RefusesDamagedOrForeignJson) {
  const json good = json::parse(load_tokenizer(kSmall)->to_json());
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
      {R"({"model": {"vocab": {"!": 1.5}}})", "no whole number"},
      {R"({"model": {"vocab": {"!": "0"}}})", "no whole number"},
      {R"({"model": {"vocab": {"gap": 600}}})", "ids up to 600"},
      {R"({"model": {"vocab": {"": 556}}})", "a token without text"},
      {R"({"model": {"byte_fallback": true}})", "byte_fallback"},
      {R"({"model": {"ignore_merges": true}})", "ignore_merges"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})", "end_of_word_suffix"},
      {R"({"normalizer": {"type": "NFC"}})", "normalizer"},
      {R"({"pre_tokenizer": {"type": "Split"}})", "not ByteLevel"},
      {R"({"pre_tokenizer": {"add_prefix_space": true}})", "add_prefix_space"},
      {R"({"pre_tokenizer": {"use_regex": false}})", "GPT-2's expression"},
      {R"({"pre_tokenizer": null})", "no pre_tokenizer"},
      {R"({"added_tokens": {}})", "added_tokens is no list"},
      {R"({"added_tokens": [{"id": 556}]})", "without id and content"},
      {R"({"added_tokens": [{"id": 3, "content": "!"}]})", "the ids 0 and 3"},
      {R"({"added_tokens": [{"id": 3, "content": "<x>"}]})", "the same id 3"},
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
    file.merge_patch(json::parse(c.patch));
    const std::string said = user_error([&] { parse_tokenizer_json(file.dump(), "t.json"); });
    expect_contains(said, "t.json");
    expect_contains(said, c.said);
  }
  for (const char* text : {"", "{", "[]", "7", "null", "\xff", "{\"a\": \"\\ud800\"}", "{} x"}) {
    expect_contains(user_error([&] { parse_tokenizer_json(text, "t.json"); }), "t.json");
  }
  const std::string deep(1'000'000, '[');
  expect_contains(user_error([&] { parse_tokenizer_json(deep, "t.json"); }), "no valid JSON");
}

TEST(LoadTokenizer, RefusesDamagedPairs) {
  const std::string vocabulary = read_text(kSmall / "vocab.json");
  const auto said = [&](std::string_view v, std::string_view m) {
    return user_error([&] { parse_bpe_files(v, m, "vocab.json"); });
  };
  expect_contains(said(vocabulary.substr(0, 100), ""), "no valid JSON");
  expect_contains(said("[]", ""), "holds no vocabulary");
  expect_contains(said("{}", ""), "lacks the token");
  expect_contains(said(vocabulary, "#version: 0.2\na b c\n"), "\"a b c\" is not two tokens");
  expect_contains(said(vocabulary, "a \n"), "is not two tokens");
  EXPECT_EQ(parse_bpe_files(vocabulary, "", "vocab.json")->encode("ab").size(), 2u);
}

}  // namespace
}  // namespace lathe
