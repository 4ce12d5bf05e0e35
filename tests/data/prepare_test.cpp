#include "src/data/prepare.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "src/data/shard.h"
#include "src/io/directory_lock.h"
#include "src/io/json.h"
#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

const fs::path kSmallBpe = fs::path(LATHE_GOLDEN) / "small";
constexpr int32_t kEndOfText = 556;

std::vector<int32_t> tokens_of(const fs::path& directory, const std::string& split) {
  if (find_shards(directory, split).empty()) return {};
  const TokenSet set(directory, split);
  std::vector<int32_t> tokens(static_cast<size_t>(set.size()));
  set.copy(0, set.size(), tokens.data());
  return tokens;
}

// The small BPE with an end-of-text token, in its own folder.
fs::path small_with_end_of_text(const TempDir& dir) {
  auto file = parse_json(load_tokenizer(kSmallBpe)->to_json());
  file["added_tokens"] = {{{"id", kEndOfText}, {"content", "<|endoftext|>"}}};
  return write_text(dir / "bpe.json", file.dump());
}

// Prose-like text that is hard to cut: long words, runs of spaces, several scripts.
std::string varied_text(size_t bytes) {
  std::mt19937 random(11);
  const std::vector<std::string> pieces = {"the",
                                           " of",
                                           " and",
                                           "'s",
                                           "'",
                                           " ",
                                           "  ",
                                           "\n",
                                           "\n\n",
                                           "12",
                                           "é",
                                           "你好",
                                           "\xf0\x9f\x98\x80",
                                           ", ",
                                           ". ",
                                           "!?",
                                           "\t",
                                           "re",
                                           " ten",
                                           "\xc2\x85",
                                           "e\xcc\x81"};
  std::string text;
  while (text.size() < bytes) {
    const size_t repeat = random() % 5000 == 0 ? 3000 : 1;
    const std::string& piece = pieces[random() % pieces.size()];
    for (size_t i = 0; i < repeat; ++i) text += piece;
  }
  return text;
}

class PrepareTest : public testing::Test {
 protected:
  PrepareOptions options(const std::string& text) {
    PrepareOptions o;
    o.inputs = {write_text(dir_ / "input.txt", text)};
    o.out = dir_ / "out";
    o.threads = 2;
    return o;
  }
  std::string said(const PrepareOptions& o) {
    return user_error([&] { prepare(o); });
  }
  TempDir dir_;
};

TEST_F(PrepareTest, SplitsCharactersAsNanoGpt) {
  const PrepareResult result = prepare(options("h\xc3\xa9llo w\xc3\xb6rld"));  // 11 characters
  EXPECT_EQ(result.characters, 11);
  EXPECT_EQ(result.bytes, 13u);
  EXPECT_EQ(result.documents, 1);
  EXPECT_EQ(result.vocab_size, 9);
  EXPECT_EQ(result.train_tokens, 9);  // int(11 * 0.9)
  EXPECT_EQ(result.val_tokens, 2);
  const auto tokenizer = load_tokenizer(dir_ / "out");
  EXPECT_EQ(tokenizer->decode(tokens_of(dir_ / "out", "train")), "h\xc3\xa9llo w\xc3\xb6r");
  EXPECT_EQ(tokenizer->decode(tokens_of(dir_ / "out", "val")), "ld");
}

TEST_F(PrepareTest, TinyShakespeareGivesThePublishedCounts) {
  const char* folder = std::getenv("LATHE_TEST_DATA");
  if (!folder || !*folder)
    GTEST_SKIP() << "LATHE_TEST_DATA is not set: it names a folder with tinyshakespeare.txt";
  PrepareOptions o;
  o.inputs = {fs::path(folder) / "tinyshakespeare.txt"};
  o.out = dir_ / "char";
  const PrepareResult characters = prepare(o);
  EXPECT_EQ(characters.vocab_size, 65);
  EXPECT_EQ(characters.train_tokens, 1003854);
  EXPECT_EQ(characters.val_tokens, 111540);
  o.out = dir_ / "gpt2";
  o.tokenizer = "gpt2";
  o.vocab_dir = fs::path(folder) / "gpt2";
  const PrepareResult bpe = prepare(o);
  EXPECT_EQ(bpe.vocab_size, 50257);
  EXPECT_EQ(bpe.train_tokens, 301966);
  EXPECT_EQ(bpe.val_tokens, 36059);
}

TEST_F(PrepareTest, ThreadsAndChunksDoNotMatter) {
  const std::string text = varied_text(2'500'000);
  PrepareOptions o = options(text);
  o.tokenizer = kSmallBpe;
  o.shard_tokens = 200'000;
  const auto tokenizer = load_tokenizer(kSmallBpe);
  std::vector<int32_t> train;
  for (int threads : {1, 3}) {
    o.threads = threads;
    o.out = dir_ / fmt::format("out{}", threads);
    prepare(o);
    const auto tokens = tokens_of(o.out, "train");
    if (train.empty()) {
      train = tokens;
      const std::string decoded = tokenizer->decode(tokens);
      EXPECT_EQ(decoded + tokenizer->decode(tokens_of(o.out, "val")), text);
      EXPECT_EQ(tokens, tokenizer->encode(decoded)) << "cutting changed the tokens";
    }
    EXPECT_EQ(tokens, train) << threads;
  }
  EXPECT_GT(find_shards(o.out, "train").size(), 2u);
}

TEST_F(PrepareTest, TakesAWordLongerThanAChunk) {
  PrepareOptions o = options("x " + std::string(1'200'000, 'a') + " y");
  o.tokenizer = kSmallBpe;
  o.val_fraction = 0;
  prepare(o);
  EXPECT_EQ(tokens_of(o.out, "train"),
            load_tokenizer(kSmallBpe)->encode("x " + std::string(1'200'000, 'a') + " y"));
  EXPECT_FALSE(fs::exists(o.out / "val_000000.bin"));
}

TEST_F(PrepareTest, SeparatesDocuments) {
  PrepareOptions o = options("");
  o.tokenizer = small_with_end_of_text(dir_);
  o.inputs = {write_text(dir_ / "a", "one"), write_text(dir_ / "b", ""),
              write_text(dir_ / "c", "two"), write_text(dir_ / "d", " <|endoftext|>")};
  o.val_fraction = 0;
  EXPECT_EQ(prepare(o).documents, 3);
  const auto tokenizer = load_tokenizer(o.tokenizer);
  std::vector<int32_t> expected = tokenizer->encode("one");
  for (const char* document : {"two", " <|endoftext|>"}) {
    expected.push_back(kEndOfText);
    for (int32_t id : tokenizer->encode(document)) expected.push_back(id);
  }
  EXPECT_EQ(tokens_of(o.out, "train"), expected);
}

TEST_F(PrepareTest, JoinsDocumentsAsItIsTold) {
  PrepareOptions o = options("");
  o.inputs = {write_text(dir_ / "a", "ba"), write_text(dir_ / "b", "ab")};
  o.val_fraction = 0;
  const std::string sentence =
      "the input holds 2 documents, and the tokenizer has no <|endoftext|> to stand between them";
  expect_contains(said(o), sentence);
  o.tokenizer = kSmallBpe;
  expect_contains(said(o), sentence);
  EXPECT_FALSE(fs::exists(o.out)) << "nothing is left of what was refused";

  o.force = true;
  o.tokenizer = "char";
  o.document_join = "\n.";
  EXPECT_EQ(prepare(o).join, "\n.");
  EXPECT_EQ(load_tokenizer(o.out)->decode(tokens_of(o.out, "train")), "ba\n.ab");
  o.document_join = "";  // joined without anything, because the user asked for it
  EXPECT_EQ(prepare(o).vocab_size, 2);
  EXPECT_EQ(load_tokenizer(o.out)->decode(tokens_of(o.out, "train")), "baab");
  o.document_join = "a\xff";
  expect_contains(said(o), "--document-join is not UTF-8 at byte 1");
  o.document_join = "a\n";
  o.tokenizer = o.out;
  expect_contains(said(o), "--document-join has U+000A at byte 1, which the vocabulary lacks");

  auto file = parse_json(load_tokenizer(kSmallBpe)->to_json());
  file["added_tokens"] = {{{"id", 556}, {"content", "</s>"}}};
  o.tokenizer = write_text(dir_ / "s.json", file.dump());
  o.document_join = "</s>";
  prepare(o);
  EXPECT_EQ(tokens_of(o.out, "train"), (std::vector<int32_t>{65, 64, 556, 259}));
}

TEST_F(PrepareTest, LeavesByteOrderMarksOut) {
  PrepareOptions o = options("\xef\xbb\xbfxyz");
  o.val_fraction = 0;
  const PrepareResult result = prepare(o);
  EXPECT_EQ(result.byte_order_marks, 1);
  EXPECT_EQ(result.vocab_size, 3);
  EXPECT_EQ(load_tokenizer(o.out)->decode(tokens_of(o.out, "train")), "xyz");
  o.force = true;
  o.inputs = {write_text(dir_ / "a", "\xef\xbb\xbf"), write_text(dir_ / "b", "\xef\xbb\xbfx"),
              write_text(dir_ / "c", "y\xef\xbb\xbf")};
  o.document_join = "";
  EXPECT_EQ(prepare(o).byte_order_marks, 2);
  EXPECT_EQ(load_tokenizer(o.out)->decode(tokens_of(o.out, "train")), "xy\xef\xbb\xbf")
      << "elsewhere U+FEFF is a character";
  o = options("\xef\xbb\xbf{\"text\": \"xy\"}\n");
  o.force = true;
  o.format.jsonl_key = "text";
  EXPECT_EQ(prepare(o).byte_order_marks, 1);
  o = options(
      "\xef\xbb\xbf"
      "ab\xff");
  o.force = true;
  expect_contains(said(o), "not UTF-8 at byte 5 (0xff)");
}

TEST_F(PrepareTest, RefusesWhatIsNoText) {
  using namespace std::string_literals;
  expect_contains(said(options("ab\0c"s)),
                  "input.txt has a NUL at byte 2: it is UTF-16 or not text");
  expect_contains(said(options("a\0b\0\xff"s)), "a NUL at byte 1");
  expect_contains(said(options("\xff\xfe"
                               "a\0b\0"s)),
                  "input.txt is not UTF-8, but UTF-16");
  expect_contains(said(options("\xfe\xff\0a\0b"s)), "input.txt is not UTF-8, but UTF-16");
  PrepareOptions lines = options("{\"text\":\"ab\"}\n{\"text\":\"ab\"}\0garbage\n"s);
  lines.format.jsonl_key = "text";
  lines.document_join = "";
  expect_contains(said(lines), "input.txt has a NUL at byte 27");
  lines.inputs = {write_text(dir_ / "escaped", "{\"text\":\"a\\u0000b\"}\n")};
  lines.val_fraction = 0;
  prepare(lines);  // an escaped NUL is intended
  EXPECT_EQ(load_tokenizer(lines.out)->decode(tokens_of(lines.out, "train")), "a\0b"s);
}

TEST_F(PrepareTest, NeitherSplitIsEmptyUnlessAskedFor) {
  PrepareOptions o = options("a");
  expect_contains(said(o), "--val-fraction 0.1 leaves none of 1 character to train on");
  EXPECT_FALSE(fs::exists(o.out));
  o.val_fraction = 0;
  EXPECT_EQ(prepare(o).train_tokens, 1);
  o = options("\xc3\xa9\xc3\xa9");
  o.force = true;
  o.val_fraction = 0.6;
  expect_contains(said(o), "leaves none of 2 characters to train on");
  o.val_fraction = 1e-17;
  expect_contains(said(o), "--val-fraction 1e-17 of 2 characters is less than one");
  o.val_fraction = 0.5;
  EXPECT_EQ(prepare(o).val_tokens, 1);
}

TEST_F(PrepareTest, CutsAtSeparatorsAndLines) {
  const auto documents_of = [&](PrepareOptions o) {
    o.force = true;
    o.val_fraction = 0;
    o.tokenizer = dir_ / "bpe.json";
    const PrepareResult result = prepare(o);
    std::vector<std::string> documents(1);
    const auto tokenizer = load_tokenizer(o.tokenizer);
    for (int32_t id : tokens_of(o.out, "train")) {
      if (id == kEndOfText) {
        documents.emplace_back();
      } else {
        documents.back() += tokenizer->token(id);
      }
    }
    EXPECT_EQ(result.documents, static_cast<int64_t>(documents.size()));
    return documents;
  };
  small_with_end_of_text(dir_);
  using Documents = std::vector<std::string>;
  PrepareOptions o = options("---a b---\xc3\xa9--\n------c---");
  o.format.separator = "---";
  EXPECT_EQ(documents_of(o), (Documents{"a b", "\xc3\xa9--\n", "c"}));
  // Separators at every position relative to the blocks that are read.
  std::string text;
  Documents expected;
  for (int i = 0; i < 2000; ++i) {
    expected.push_back(std::string(static_cast<size_t>(1000 + i % 97), 'a' + i % 26));
    text += expected.back() + "<<<--->>>";
  }
  o = options(text);
  o.format.separator = "<<<--->>>";
  EXPECT_EQ(documents_of(o), expected);
  o = options("{\"text\": \"a\\nb\", \"n\": 1}\n\n{\"text\": \"\"}\n  {\"text\": \"\\u00e9\"}");
  o.format.jsonl_key = "text";
  EXPECT_EQ(documents_of(o), (Documents{"a\nb", "\xc3\xa9"}));
}

TEST_F(PrepareTest, IsOneProcessAtATime) {
  const PrepareOptions o = options("abcabcabcabc");
  fs::create_directories(o.out);
  {
    const DirectoryLock other(o.out);
    expect_contains(said(o), "is in use by process");
  }
  prepare(o);
  EXPECT_FALSE(fs::exists(o.out / "lock"));
}

TEST_F(PrepareTest, KeepsWhatIsThere) {
  PrepareOptions o = options("abcabcabcabc");
  o.shard_tokens = 4;
  prepare(o);
  const std::string before = read_text(o.out / "train_000002.bin");
  expect_contains(said(o), "already holds data");
  EXPECT_EQ(read_text(o.out / "train_000002.bin"), before);

  // A failure with --force changes nothing, either.
  o.force = true;
  write_text(o.inputs[0], "abc\xff");
  expect_contains(said(o), "input.txt is not UTF-8 at byte 3 (0xff)");
  EXPECT_EQ(read_text(o.out / "train_000002.bin"), before);

  write_text(o.inputs[0], "xyz");
  write_text(o.out / "notes.txt", "mine");
  prepare(o);
  EXPECT_EQ(find_shards(o.out, "train").size(), 1u) << "no shard of the old data is left";
  EXPECT_EQ(load_tokenizer(o.out)->decode(tokens_of(o.out, "train")), "xy");
  EXPECT_EQ(read_text(o.out / "notes.txt"), "mine");
  EXPECT_FALSE(fs::exists(o.out / ".prepare.partial"));
}

TEST_F(PrepareTest, UsesAnotherTextsCharacters) {
  PrepareOptions o = options("abcd");
  prepare(o);
  PrepareOptions again = options("dddda");
  again.tokenizer = o.out;
  again.out = dir_ / "again";
  again.val_fraction = 0;
  prepare(again);
  EXPECT_EQ(tokens_of(again.out, "train"), (std::vector<int32_t>{3, 3, 3, 3, 0}));
  write_text(dir_ / "input.txt", std::string(2'000'000, 'a') + "x");
  again.out = dir_ / "third";
  expect_contains(said(again), "input.txt has U+0078 at byte 2000000, which the vocabulary lacks");
  EXPECT_FALSE(fs::exists(again.out));
}

TEST_F(PrepareTest, RefusesWhatCannotWork) {
  PrepareOptions good = options("some text");
  PrepareOptions o = good;
  o.inputs = {dir_ / "none.txt"};
  expect_contains(said(o), "none.txt: No such file");
  o.inputs = {dir_.path()};
  expect_contains(said(o), "it is a directory");
  o.inputs = {write_text(dir_ / "empty.txt", "")};
  expect_contains(said(o), "holds no text");
  o.inputs = {write_text(dir_ / "cut.txt", "abc\xe4\xbd")};
  expect_contains(said(o), "cut.txt is not UTF-8 at byte 3");
  o.inputs = {write_text(dir_ / "late.txt", std::string(3'000'000, 'x') + "\xc3(")};
  expect_contains(said(o), "late.txt is not UTF-8 at byte 3000000");
  o = good;
  o.tokenizer = "gpt2";
  expect_contains(said(o), "--tokenizer gpt2 needs --vocab-dir");
  o.vocab_dir = dir_ / "nowhere";
  expect_contains(said(o), "there is no tokenizer at");
  o.tokenizer = "gpt3";
  expect_contains(said(o), "there is no tokenizer at gpt3");
  for (double fraction : {-0.1, 1.0, 2.0, std::nan("")}) {
    o = good;
    o.val_fraction = fraction;
    expect_contains(said(o), "--val-fraction is");
  }
  o = good;
  o.shard_tokens = 0;
  expect_contains(said(o), "--shard-tokens is 0");
  o = good;
  o.threads = -1;
  expect_contains(said(o), "--threads is -1");
  o = good;
  o.format = {"x", "y"};
  expect_contains(said(o), "exclude each other");
  o = options("not json\n");
  o.format.jsonl_key = "text";
  expect_contains(said(o), "input.txt line 1 is not valid JSON");
  o = options("{\"text\": \"a\"}\n{\"body\": \"a\"}\n");
  o.format.jsonl_key = "text";
  expect_contains(said(o), "input.txt line 2 has no text under \"text\"");
  o = good;
  o.out = write_text(dir_ / "file", "x");
  expect_contains(said(o), "cannot write");
  EXPECT_FALSE(fs::exists(good.out)) << "nothing is left of what failed";
}

// The program itself: its output and exit codes.
class PrepareProgram : public PrepareTest {
 protected:
  int run(const std::string& arguments, const std::string& before = "") {
    const std::string log = (dir_ / "log").string();
    const int status =
        std::system(fmt::format("{}{} {} >{} 2>&1", before, LATHE_PREPARE, arguments, log).c_str());
    output_ = read_text(log);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string output_;
};

TEST_F(PrepareProgram, ReadsStandardInputAndDecodesAgain) {
  const fs::path text = write_text(dir_ / "text", varied_text(20000));
  const std::string out = (dir_ / "data").string();
  EXPECT_EQ(run(fmt::format("--tokenizer {} --input - --out {} <{}", kSmallBpe.string(), out,
                            text.string())),
            0)
      << output_;
  EXPECT_EQ(run("--decode " + out), 0);
  EXPECT_EQ(output_, read_text(text));
  EXPECT_EQ(run("--decode " + out + "/val_000000.bin"), 0);
  EXPECT_TRUE(read_text(text).ends_with(output_));
  EXPECT_FALSE(output_.empty());
}

TEST_F(PrepareProgram, ReadsPipes) {
  const fs::path text = write_text(dir_ / "text", varied_text(20000));
  const std::string pipe = "cat " + text.string() + " | ";
  const std::string data = (dir_ / "data").string();
  EXPECT_EQ(run("--input /dev/stdin --out " + data, pipe), 0) << output_;
  EXPECT_EQ(run("--decode " + data), 0);
  EXPECT_EQ(output_, read_text(text));
  // Errors name the input as the user did, not by the copy's name.
  write_text(text, "abc\xff");
  EXPECT_EQ(run("--force --input /dev/stdin --out " + data, pipe), 2);
  expect_contains(output_, "prepare: /dev/stdin is not UTF-8 at byte 3");
  EXPECT_EQ(run("--force --input - --out " + data, pipe), 2);
  expect_contains(output_, "prepare: standard input is not UTF-8 at byte 3");
}

TEST_F(PrepareProgram, DecodesWithAnyTokenizerBesideTheShards) {
  const fs::path text = write_text(dir_ / "text", "Hello, hello");
  const fs::path out = dir_ / "data";
  EXPECT_EQ(run(fmt::format("--tokenizer {} --input {} --out {}", kSmallBpe.string(), text.string(),
                            out.string())),
            0);
  fs::remove(out / "tokenizer.json");
  fs::copy_file(kSmallBpe / "vocab.json", out / "encoder.json");
  fs::copy_file(kSmallBpe / "merges.txt", out / "vocab.bpe");
  EXPECT_EQ(run("--decode " + out.string()), 0);
  EXPECT_EQ(output_, "Hello, hello");
  EXPECT_EQ(run("--decode " + (out / "train_000000.bin").string()), 0);
  EXPECT_EQ(output_, "Hello, hel");
}

TEST_F(PrepareProgram, SaysWhatStandsBetweenDocuments) {
  const std::string a = write_text(dir_ / "a", "\xef\xbb\xbfxxx").string();
  const std::string out = (dir_ / "data").string();
  EXPECT_EQ(run(fmt::format("--input {0} {0} --document-join '\n' --out {1}", a, out)), 0);
  expect_contains(output_, "from 6 characters in 2 documents with \"\\n\" between\n");
  expect_contains(output_, "left out the byte order mark at the start of 2 files\n");
  EXPECT_EQ(run(fmt::format("--input {0} {0} --document-join '' --force --out {1}", a, out)), 0);
  expect_contains(output_, "in 2 documents with \"\" between\n");
  EXPECT_EQ(run(fmt::format("--input {} --force --out {}", a, out)), 0);
  expect_contains(output_, "in 1 document\n");
}

TEST_F(PrepareProgram, EndsWithTwoAndOneSentence) {
  const std::string out = " --out " + (dir_ / "data").string();
  for (const std::string& arguments : std::vector<std::string>{
           "", "--frobnicate", "--input", "--val-fraction much", "--input x",
           "--input " + (dir_ / "none").string() + out, "--decode " + (dir_ / "none").string(),
           "--input x --threads two" + out, "--input - - </dev/null" + out}) {
    EXPECT_EQ(run(arguments), 2) << arguments << ": " << output_;
    EXPECT_TRUE(output_.starts_with("prepare: ")) << output_;
    EXPECT_EQ(std::count(output_.begin(), output_.end(), '\n'), 1) << output_;
  }
  EXPECT_EQ(run("--help"), 0);
  expect_contains(output_, "--val-fraction");
}

}  // namespace
}  // namespace lathe
