// What the programs do beside training: plans, evaluations, benchmarks, configuration files, text.
#include <csignal>
#include <sstream>

#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Programs : public TrainTest {
 protected:
  ProcessResult train(const Flags& flags) { return run(train_command(flags)); }
  std::string trained() {
    expect_success(train(tiny(scratch / "run")));
    return scratch / "run/step-00000012";
  }
  std::string text(const Flags& flags) {
    const ProcessResult result = run(sample_command(flags));
    expect_success(result);
    EXPECT_EQ(result.err, "");
    return result.out;
  }
};

TEST_F(Programs, HelpIsGroupedAndSucceeds) {
  const ProcessResult result = run({LATHE_TRAIN, "--help"});
  expect_success(result);
  for (const char* part : {"\nModel:\n", "\nData:\n", "\nOptimizer:\n", "\nMachine:\n",
                           "\nOutput:\n", "--n-embd", "--resume", "shakespeare-char"}) {
    expect_contains(result.out, part);
  }
  for (const char* program : {LATHE_SAMPLE, LATHE_PREPARE, LATHE_CORPUS}) {
    expect_success(run({program, "--help"}));
  }
}

TEST_F(Programs, ADryRunPlansWithoutDataAndWritesNothing) {
  const ProcessResult result =
      run({LATHE_TRAIN, "--dry-run", "--vocab-size", "50257", "--out", scratch / "out"});
  expect_success(result);
  for (const char* part : {"124439808", "memory plan", "AdamW moments", "total", "n-layer=12",
                           "lr-decay-steps=1000"}) {
    expect_contains(result.out, part);
  }
  EXPECT_FALSE(fs::exists(scratch / "out"));
}

TEST_F(Programs, FlagsOverrideTheFileWhichOverridesThePreset) {
  const fs::path file = write_text(scratch / "mine.toml",
                                   "# a comment\nmodel = \"shakespeare-cpu\"\nn-layer = 3\n"
                                   "n-embd = 64\nbias = true\ngelu = \"tanh\"\n");
  const ProcessResult result =
      run({LATHE_TRAIN, "--config", file, "--n-embd", "32", "--vocab-size", "65", "--dry-run"});
  expect_success(result);
  for (const char* part : {"n-layer=3\n", "n-embd=32\n", "n-head=4\n", "bias=1\n",
                           "gelu=\"tanh\"\n", "beta2=0.99\n", "vocab-size=65\n"}) {
    expect_contains(result.out, part);
  }
}

TEST_F(Programs, TheSavedConfigurationReproducesTheRun) {
  const fs::path a = scratch / "a", b = scratch / "b";
  expect_success(train(with(tiny(a), {{"dropout", "0.1"}, {"bias", "true"}, {"gelu", "tanh"}})));
  expect_success(run({LATHE_TRAIN, "--config", a / "config.toml", "--out", b}));
  expect_same_run(a, b);
}

TEST_F(Programs, AnEvaluationAloneSaysWhatTheRunSaid) {
  const std::string checkpoint = trained();
  const std::string last = repeatable_metrics(scratch / "run").back();
  const auto before = read_text(scratch / "run/metrics.jsonl");
  const double val_loss = std::stod(last.substr(last.find(':', last.find("val_loss")) + 1));
  std::ostringstream line;
  line.precision(4);
  line << std::fixed << "\nval_loss " << val_loss << "\n";
  for (const Flags& from : {Flags{}, Flags{{"resume", checkpoint}},
                            Flags{{"init", checkpoint}, {"out", scratch / "x"}}}) {
    const ProcessResult result =
        train(with(tiny(scratch / "run"), with({{"eval-only", ""}}, from)));
    expect_success(result);
    EXPECT_TRUE(result.out.ends_with(line.str())) << result.out << line.str();
  }
  EXPECT_FALSE(fs::exists(scratch / "x"));
  EXPECT_EQ(read_text(scratch / "run/metrics.jsonl"), before);
}

TEST_F(Programs, ABenchmarkTimesStepsAndWritesNothing) {
  const ProcessResult result = train(with(tiny(scratch / "out"), {{"benchmark", ""}}));
  expect_success(result);
  expect_contains(result.out, "median step ");
  expect_contains(result.out, " tokens/s over 12 steps");
  EXPECT_EQ(result.out.find("val "), std::string::npos);
  EXPECT_FALSE(fs::exists(scratch / "out"));
}

TEST_F(Programs, MetricsHoldOnlyWhatWasMeasured) {
  trained();
  std::istringstream lines(read_text(scratch / "run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const bool validation = line.find("\"val_loss\"") != std::string::npos;
    for (const char* key :
         {"\"loss\"", "\"lr\"", "\"grad_norm\"", "\"dt_ms\"", "\"forward_ms\"", "\"backward_ms\"",
          "\"optimizer_ms\"", "\"tokens_per_second\"", "\"samples_per_second\"", "\"tokens\""}) {
      EXPECT_EQ(line.find(key) != std::string::npos, !validation) << key << " in " << line;
    }
    for (const char* key : {"comm_ms", "comm_exposed_ms", "mfu"}) {  // one rank, unknown peak
      EXPECT_EQ(line.find(key), std::string::npos) << line;
    }
  }
  EXPECT_EQ(loss_steps(scratch / "run").size(), 12u);
  EXPECT_EQ(validation_steps(scratch / "run"), (std::vector<int64_t>{0, 4, 8, 12}));
}

TEST_F(Programs, SamplesDependOnTheSeedAlone) {
  const Flags flags = {{"checkpoint", trained()}, {"tokens", "100"}, {"prompt", "The "}};
  const std::string first = text(with(flags, {{"seed", "1"}}));
  EXPECT_TRUE(first.starts_with("The "));
  EXPECT_EQ(first.size(), 4 + 100 + 1u);  // characters of one byte, and a newline
  EXPECT_EQ(text(with(flags, {{"seed", "1"}})), first);
  EXPECT_NE(text(with(flags, {{"seed", "2"}})), first);
  const Flags greedy = with(flags, {{"temperature", "0"}});
  EXPECT_EQ(text(with(greedy, {{"seed", "1"}})), text(with(greedy, {{"seed", "2"}})));
  EXPECT_EQ(text(with(flags, {{"top-k", "1"}})), text(greedy));
  EXPECT_EQ(text(with(flags, {{"top-p", "0"}})), text(greedy));
  text(with(flags, {{"dtype", "bf16"}}));
}

TEST_F(Programs, AVocabularyThatWasRoundedUpIsSampledWhereThereIsText) {
  const fs::path out = scratch / "out";
  expect_success(train(
      with(tiny(out), {{"vocab-size", "256"}, {"sample-interval", "6"}, {"sample-tokens", "50"}})));
  expect_success(run(sample_command(
      {{"checkpoint", out / last_checkpoint(out)}, {"tokens", "50"}, {"prompt", "The"}})));
}

TEST_F(Programs, PromptsComeFromFilesAndMayBeLong) {
  const Flags flags = {{"checkpoint", trained()}, {"tokens", "5"}};
  const std::string words = "The fox and the owl. ";
  std::string many;
  for (int i = 0; i < 50; ++i) many += words;
  write_text(scratch / "prompt", many);
  const std::string at = std::string("@") + (scratch / "prompt").string();
  const std::string out = text(with(flags, {{"prompt", at}}));
  EXPECT_TRUE(out.starts_with(many));
  EXPECT_EQ(out.size(), many.size() + 6);
  EXPECT_EQ(text(with(flags, {{"prompt", many}})), out);
  EXPECT_EQ(text(with(flags, {{"prompt", words}, {"tokens", "0"}})), words + "\n");
}

// A BPE of the 256 bytes and <|endoftext|>, in Hugging Face's format.
std::string bytes_tokenizer() {
  std::string vocabulary;
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool itself = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    const int c = itself ? b : next++;  // GPT-2's character for the byte
    vocabulary += fmt::format("\"\\u{:04x}\": {}, ", c, b);
  }
  return R"({"added_tokens": [{"id": 256, "content": "<|endoftext|>", "special": true}],
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
             "model": {"type": "BPE", "merges": [], "vocab": {)" +
         vocabulary + R"("<|endoftext|>": 256}}})";
}

TEST_F(Programs, APromptMayHoldSpecialTokens) {
  write_text(scratch / "bytes.json", bytes_tokenizer());
  write_text(scratch / "text", std::string(300, 'a'));
  expect_success(run(command_of(LATHE_PREPARE, {{"tokenizer", scratch / "bytes.json"},
                                                {"input", scratch / "text"},
                                                {"out", scratch / "bytes"}})));
  const fs::path out = scratch / "run";
  expect_success(train(with(tiny(out), {{"data", scratch / "bytes"}})));
  const Flags flags = {{"checkpoint", out / last_checkpoint(out)}, {"tokens", "20"}};
  // An empty prompt begins with the end-of-text token. U+FEFF at a file's start is no text.
  write_text(scratch / "empty", "\xef\xbb\xbf");
  const std::string from_empty =
      text(with(flags, {{"prompt", "@" + (scratch / "empty").string()}}));
  EXPECT_EQ(text(with(flags, {{"prompt", "<|endoftext|>"}})), "<|endoftext|>" + from_empty);
}

TEST_F(Programs, TextComesOutAsItIsMade) {
  Process process(sample_command({{"checkpoint", trained()}, {"tokens", "1000000000"}}));
  while (process.running() && process.output().size() < 200) ::usleep(1000);
  EXPECT_TRUE(process.running());
  process.send(SIGKILL);
  const ProcessResult result = process.wait();
  EXPECT_EQ(result.signal, SIGKILL) << result.err;
  EXPECT_GE(result.out.size(), 200u);
}

}  // namespace
}  // namespace lathe::testing
