// The programs apart from training: plans, evaluations, benchmarks, configuration files, text.
#include <algorithm>
#include <csignal>
#include <sstream>

#include "src/data/tokenizer.h"
#include "src/io/json.h"
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

// The row of this job's ranks has the total of this job's plan at its stage.
TEST_F(Programs, ADryRunTellsTheMemoryOfOtherJobs) {
  const ProcessResult result = run({LATHE_TRAIN, "--dry-run", "--vocab-size", "50257"});
  expect_success(result);
  std::istringstream lines(result.out.substr(result.out.find("MiB of a rank on its device")));
  std::string line;
  std::getline(lines, line), std::getline(lines, line);
  std::vector<std::array<double, 4>> table;
  for (int ranks = 1, row = 0; ranks <= 512; ranks *= 2) {
    std::array<double, 4> mib{};
    ASSERT_TRUE(lines >> row >> mib[0] >> mib[1] >> mib[2] >> mib[3]);
    EXPECT_EQ(row, ranks);
    table.push_back(mib);
  }
  EXPECT_NEAR(table[0][0], planned_bytes(result.out) / (1 << 20), 0.06);
  for (size_t i = 2; i <= 7; ++i) {  // with more ranks the padding of buckets shows
    for (size_t stage = 1; stage < 4; ++stage) {
      EXPECT_LT(table[i][stage], table[i][stage - 1]);  // a later stage needs less
      EXPECT_LT(table[i][stage], table[i - 1][stage]);  // and so do more ranks
    }
  }
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
  const fs::path a = scratch / "a # \"b\"\nc", b = scratch / "b";
  expect_success(train(with(tiny(a), {{"dropout", "0.1"}, {"bias", "true"}, {"gelu", "tanh"}})));
  expect_success(run({LATHE_TRAIN, "--config", a / "config.toml", "--out", b}));
  expect_same_run(a, b);
  // config.toml also names --out, so the run finds that it is done.
  expect_contains(run({LATHE_TRAIN, "--config", a / "config.toml"}).out,
                  "no step was taken: 12 are done already, and --steps is 12");
}

TEST_F(Programs, ARunThatIsFinishedSaysSo) {
  trained();
  for (const std::string steps : {"12", "5"}) {
    const ProcessResult again = train(with(tiny(scratch / "run"), {{"steps", steps}}));
    expect_success(again);
    expect_contains(again.out, "no step was taken: 12 are done already, and --steps is " + steps +
                                   "; raise it");
  }
  expect_contains(train(with(tiny(scratch / "none"), {{"steps", "0"}})).out,
                  "no step was taken: --steps is 0");
  const ProcessResult further = train(with(tiny(scratch / "run"), {{"steps", "13"}}));
  EXPECT_EQ(further.out.find("no step"), std::string::npos) << further.out;
}

TEST_F(Programs, ManyCheckpointsMayBeKept) {
  for (const std::string keep : {"3000000000", "4294967297"}) {
    const fs::path out = scratch / keep;
    expect_success(train(with(tiny(out), {{"checkpoint-interval", "4"}, {"keep", keep}})));
    EXPECT_EQ(checkpoints(out).size(), 3u) << keep;
  }
}

TEST_F(Programs, TheBannerNamesTheModel) {
  const std::string checkpoint = trained();
  const auto model = [&](const Flags& more) {
    const ProcessResult result = train(with(tiny(scratch / "out"), with({{"dry-run", ""}}, more)));
    expect_success(result);
    const size_t at = result.out.find("model ");
    return result.out.substr(at, result.out.find('\n', at) - at);
  };
  expect_contains(model({}), " shakespeare-cpu with other sizes: 1 layers, 2 heads, 16 wide");
  expect_contains(model({{"n-layer", "4"}, {"n-head", "4"}, {"n-embd", "128"}}),
                  " shakespeare-cpu: 4 layers");
  expect_contains(model({{"init", checkpoint}}), " " + checkpoint + ": 1 layers");
}

TEST_F(Programs, RandomWeightsAreEvaluatedWhereTheyAreAskedFor) {
  expect_success(train(tiny(scratch / "run")));
  const std::string first = repeatable_metrics(scratch / "run").front();  // of step 0
  const ProcessResult result =
      train(with(tiny(scratch / "out"), {{"eval-only", ""}, {"init", "random"}}));
  expect_success(result);
  const size_t at = first.find(':', first.find("val_loss")) + 1;
  EXPECT_TRUE(result.out.ends_with("\nval_loss " + first.substr(at, first.find('}') - at) + "\n"))
      << result.out << first;
}

// Samples begin with a newline, but a text may have none.
TEST_F(Programs, ATextWithoutNewlinesIsSampled) {
  std::string line;
  for (int i = 0; i < 60; ++i) line += "The fox and the owl. ";
  prepare_text(scratch.path(), line, scratch / "text");
  const fs::path out = scratch / "out";
  const ProcessResult result = train(with(
      tiny(out), {{"data", scratch / "text"}, {"sample-interval", "6"}, {"sample-tokens", "20"}}));
  expect_success(result);
  expect_contains(result.out, "sample:\n");
  EXPECT_EQ(text({{"checkpoint", out / last_checkpoint(out)}, {"tokens", "20"}}).size(), 21u);
}

// CLI11 would read a text in brackets as a list of texts.
TEST_F(Programs, AnInputIsReadWhateverItsName) {
  write_text(scratch / "y", "wrong");
  for (const std::string name : {"[y]", "[y,y]", "{}", "%%", "a,b"}) {
    write_text(scratch / name, "a b c d e f g h i j");
    const ProcessResult result =
        run({LATHE_PREPARE, "--input", name, name, "--document-join", "", "--out", "data " + name},
            {.directory = scratch.path()});
    expect_success(result);
    expect_contains(result.out, " from 38 characters in 2 documents");
  }
}

TEST_F(Programs, AnEvaluationAloneSaysWhatTheRunSaid) {
  const std::string checkpoint = trained();
  const std::string last = repeatable_metrics(scratch / "run").back();
  const auto before = read_text(scratch / "run/metrics.jsonl");
  // Compare the digits themselves, which read back as the same double.
  const size_t at = last.find(':', last.find("val_loss")) + 1;
  const std::string line = "\nval_loss " + last.substr(at, last.find('}') - at) + "\n";
  for (const Flags& from : {Flags{}, Flags{{"resume", checkpoint}},
                            Flags{{"init", checkpoint}, {"out", scratch / "x"}}}) {
    const ProcessResult result =
        train(with(tiny(scratch / "run"), with({{"eval-only", ""}}, from)));
    expect_success(result);
    EXPECT_TRUE(result.out.ends_with(line)) << result.out << line;
  }
  EXPECT_FALSE(fs::exists(scratch / "x"));
  EXPECT_EQ(read_text(scratch / "run/metrics.jsonl"), before);
}

// transformers trains biases even if lathe had none, but keeps `bias` in config.json unchanged.
TEST_F(Programs, BiasesFromElsewhereCountWhateverConfigJsonSays) {
  const fs::path checkpoint = trained();
  std::string weights = read_text(checkpoint / "model.safetensors");
  const auto model = [&](const std::string& name, const std::string& bias) {
    const fs::path dir = scratch / name;
    fs::create_directory(dir);
    write_text(dir / "model.safetensors", weights);
    std::string config = read_text(checkpoint / "config.json");
    const std::string key = "\"lathe_bias\": ";
    write_text(dir / "config.json", config.replace(config.find(key), key.size() + 5, key + bias));
    fs::copy_file(checkpoint / "tokenizer.json", dir / "tokenizer.json");
    return dir;
  };
  const auto metrics_of = [&](const fs::path& init) {
    const fs::path out = init.string() + " run";
    const ProcessResult result = train(with(tiny(out), {{"init", init}}));
    expect_success(result);
    const bool bias = result.out.find("no biases") == std::string::npos;
    return std::pair(repeatable_metrics(out), bias);
  };
  const auto zeros = metrics_of(model("zeros", "false"));
  EXPECT_FALSE(zeros.second);
  poke(weights, "h.0.mlp.c_fc.bias", 5, {1.0f});
  const auto kept = metrics_of(model("kept", "false")), told = metrics_of(model("told", "true"));
  EXPECT_TRUE(kept.second);
  EXPECT_EQ(kept.first, told.first);
  EXPECT_NE(kept.first, zeros.first);
  const auto sampled = [&](const char* name) {
    return text({{"checkpoint", scratch / name}, {"tokens", "200"}});
  };
  EXPECT_EQ(sampled("kept"), sampled("told"));
  EXPECT_NE(sampled("kept"), sampled("zeros"));
}

// If the configuration names no end-of-text token, transformers assumes GPT-2's 50256 and adds it.
TEST_F(Programs, ACheckpointTellsTheTokenThatEndsAText) {
  using nlohmann::json;
  const auto saved = [](const fs::path& out, const char* file) {
    return parse_json(read_text(out / last_checkpoint(out) / file));
  };
  json tokenizer = parse_json(load_tokenizer(LATHE_SMALL_BPE)->to_json());
  tokenizer["added_tokens"] = json::array();
  write_text(scratch / "without.json", tokenizer.dump());
  tokenizer["added_tokens"] = {{{"id", 556}, {"content", "<|endoftext|>"}, {"special", true}}};
  write_text(scratch / "with.json", tokenizer.dump());
  for (const std::string name : {"without", "with"}) {
    SCOPED_TRACE(name);
    const fs::path text = scratch / (name + ".txt"), words = scratch / (name + " data");
    write_text(text, read_text(data().parent_path() / "stories.txt"));
    expect_success(run(command_of(LATHE_PREPARE, {{"tokenizer", scratch / (name + ".json")},
                                                  {"input", text},
                                                  {"val-fraction", "0.2"},
                                                  {"out", words}})));
    const fs::path out = scratch / name;
    expect_success(train(with(tiny(out), {{"data", words}, {"steps", "2"}})));
    const json id = name == "with" ? json(556) : json();
    const json config = saved(out, "config.json"), tokens = saved(out, "tokenizer_config.json");
    EXPECT_EQ(config.at("bos_token_id"), id);
    EXPECT_EQ(config.at("eos_token_id"), id);
    EXPECT_EQ(tokens.at("tokenizer_class"), "PreTrainedTokenizerFast");
    EXPECT_EQ(tokens.value("eos_token", ""), name == "with" ? "<|endoftext|>" : "");
    EXPECT_EQ(tokens.contains("bos_token"), name == "with");
  }
  trained();  // of characters
  EXPECT_TRUE(saved(scratch / "run", "config.json").at("eos_token_id").is_null());
  EXPECT_FALSE(saved(scratch / "run", "tokenizer_config.json").contains("eos_token"));
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
  // An empty prompt begins with the end-of-text token. U+FEFF at the start of a file is no text.
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

// ---- Standard streams that are closed, full, or a pipe that nobody reads.

struct Case {
  std::string name;
  Command command;
};

constexpr std::pair<Stream, const char*> kUnwritable[] = {{Stream::closed, "it is closed"},
                                                          {Stream::full, "No space left on device"},
                                                          {Stream::broken_pipe, "Broken pipe"}};

TEST_F(Programs, FailIfWhatTheyAreRunForCannotBeWritten) {
  const std::string checkpoint = trained();
  const Flags again = tiny(scratch / "other");
  const Case cases[] = {
      {"train --help", {LATHE_TRAIN, "--help"}},
      {"train --dry-run", train_command(with(again, {{"dry-run", ""}}))},
      {"train --eval-only", train_command(with(again, {{"eval-only", ""}, {"init", checkpoint}}))},
      {"train --benchmark", train_command(with(again, {{"benchmark", ""}}))},
      {"sample --help", {LATHE_SAMPLE, "--help"}},
      {"sample", sample_command({{"checkpoint", checkpoint}, {"tokens", "1000000000"}})},
      {"prepare --help", {LATHE_PREPARE, "--help"}},
      {"prepare --decode", {LATHE_PREPARE, "--decode", data()}},
      {"corpus --help", {LATHE_CORPUS, "--help"}},
      {"corpus --entropy", {LATHE_CORPUS, "--entropy"}},
      {"plot --help", {LATHE_PLOT, "--help"}},
      {"plot --terminal", {LATHE_PLOT, scratch / "run", "--terminal"}},
      {"commtest --help", {LATHE_COMMTEST, "--help"}},
      {"commtest",
       {LATHE_COMMTEST, "--device", "cpu", "--max-bytes", "4096", "--iterations", "0", "--steps",
        "1"}}};
  for (const Case& c : cases) {
    for (const auto& [stream, reason] : kUnwritable) {
      SCOPED_TRACE(c.name + ", " + reason);
      expect_refusal(run(c.command, {.out = stream}), 1, fs::path(c.command[0]).filename(),
                     {std::string("cannot write to standard output: ") + reason});
      EXPECT_EQ(run(c.command, {.out = stream, .err = stream}).exit_code, 1);
    }
  }
}

TEST_F(Programs, EndAUsersErrorWithItsExitCodeIfStderrCannotBeWritten) {
  const Case cases[] = {{"train", {LATHE_TRAIN, "--bogus"}},
                        {"train, late", {LATHE_TRAIN, "--data", scratch / "none"}},
                        {"sample", {LATHE_SAMPLE, "--bogus"}},
                        {"sample, late", {LATHE_SAMPLE, "--checkpoint", scratch / "none"}},
                        {"prepare", {LATHE_PREPARE, "--bogus"}},
                        {"prepare, late", {LATHE_PREPARE, "--decode", scratch / "none"}},
                        {"corpus", {LATHE_CORPUS, "--bogus"}},
                        {"plot", {LATHE_PLOT, scratch / "none"}},
                        {"commtest", {LATHE_COMMTEST, "--bogus"}}};
  for (const Case& c : cases) {
    for (const auto& [stream, reason] : kUnwritable) {
      SCOPED_TRACE(c.name + ", " + reason);
      const ProcessResult result = run(c.command, {.err = stream});
      EXPECT_EQ(result.exit_code, 2) << "signal " << result.signal;
      EXPECT_EQ(run(c.command, {.out = stream, .err = stream, .in_closed = true}).exit_code, 2);
    }
  }
}

// An opened file must not get the number of a closed standard stream, and output that cannot be
// printed must not stop the work.
TEST_F(Programs, DoTheirWorkIfNobodyIsTold) {
  const fs::path out = scratch / "run";
  trained();
  const std::string stories = data().parent_path() / "stories.txt";
  expect_success(run({LATHE_PLOT, out, "--out", scratch / "a.svg"}));
  const ProcessOptions table[] = {{.in_closed = true},
                                  {.out = Stream::closed},
                                  {.err = Stream::closed},
                                  {.out = Stream::closed, .err = Stream::closed, .in_closed = true},
                                  {.out = Stream::full, .err = Stream::full},
                                  {.out = Stream::broken_pipe, .err = Stream::broken_pipe}};
  int number = 0;
  for (const ProcessOptions& deaf : table) {
    SCOPED_TRACE(number);
    const fs::path dir = scratch / std::to_string(++number);
    fs::create_directory(dir);
    expect_success(run(train_command(with(tiny(dir / "run"), {{"sample-interval", "6"}})), deaf));
    expect_same_run(out, dir / "run");
    expect_success(run({LATHE_CORPUS, "--bytes", "6000", "--out", dir / "stories.txt"}, deaf));
    EXPECT_EQ(read_text(dir / "stories.txt"), read_text(stories));
    expect_success(run(
        {LATHE_PREPARE, "--input", stories, "--val-fraction", "0.2", "--out", dir / "data"}, deaf));
    for (const auto& entry : fs::directory_iterator(data())) {
      EXPECT_TRUE(read_text(entry.path()) == read_text(dir / "data" / entry.path().filename()));
    }
    expect_success(run({LATHE_PLOT, out, "--out", dir / "a.svg"}, deaf));
    EXPECT_EQ(read_text(dir / "a.svg"), read_text(scratch / "a.svg"));
  }
}

TEST_F(Programs, AWarningThatNobodyCanReadEndsNothing) {
  const fs::path out = scratch / "run";
  expect_success(train(with(tiny(out), {{"checkpoint-interval", "6"}})));
  write_text(out / "step-00000012/trainer.json", "{");
  int steps = 13;
  for (const auto& [stream, reason] : kUnwritable) {
    SCOPED_TRACE(reason);
    // Skips a damaged checkpoint and prints that on stderr.
    const Flags flags = with(tiny(out), {{"steps", std::to_string(steps++)}, {"keep", "9"}});
    expect_success(run(train_command(flags), {.err = stream}));
    fs::remove_all(out / last_checkpoint(out));
  }
}

// ---- Terminals.

// The final content of each line: what follows the last carriage return.
std::vector<std::string> lines_on_terminal(const std::string& sent) {
  std::vector<std::string> lines;
  std::istringstream text(sent);
  for (std::string line; std::getline(text, line);) {
    if (line.ends_with('\r')) line.pop_back();
    line = line.substr(line.rfind('\r') + 1);
    if (const size_t end = line.find("\x1b[K"); end != std::string::npos) line.resize(end);
    lines.push_back(line);
  }
  return lines;
}

std::vector<std::string> step_lines(const ProcessResult& result) {
  std::vector<std::string> found;
  for (const std::string& line : lines_on_terminal(result.out)) {
    if (line.starts_with("step ") && line.find(" | loss ") != std::string::npos) {
      found.push_back(line);
    }
  }
  return found;
}

TEST_F(Programs, OnATerminalOneLineFollowsTheStepsAndFits) {
  const auto steps = [&](const Flags& flags, int columns, const char* term) {
    fs::remove_all(scratch / "run");
    const ProcessResult result = run_on_terminal(train_command(with(tiny(scratch / "run"), flags)),
                                                 columns, {.environment = {term}});
    expect_success(result);
    std::string numbers;
    for (const std::string& line : step_lines(result)) {
      EXPECT_LT(line.size(), static_cast<size_t>(columns)) << line;
      numbers += line.substr(5, line.find('/') - 5) + " ";
    }
    const bool commands = result.out.find('\x1b') != std::string::npos;
    EXPECT_EQ(commands, std::string(term) != "TERM=dumb") << result.out;
    return numbers;
  };
  // The first step, those before an evaluation, and the last.
  EXPECT_EQ(steps({}, 80, "TERM=xterm"), "1 4 8 12 ");
  EXPECT_EQ(steps({{"eval-interval", "0"}}, 40, "TERM=xterm"), "1 12 ");
  EXPECT_EQ(steps({{"log-interval", "3"}}, 80, "TERM=xterm"), "1 3 4 6 8 9 12 ");
  EXPECT_EQ(steps({}, 60, "TERM=dumb"), "1 2 3 4 5 6 7 8 9 10 11 12 ");
  EXPECT_EQ(steps({{"log-interval", "5"}}, 30, "TERM=dumb"), "1 5 10 12 ");
}

TEST_F(Programs, AChartFitsItsTerminalAndIsColouredOnlyIfThatIsWanted) {
  trained();
  const auto chart = [&](int columns, const std::vector<std::string>& environment) {
    const ProcessResult result =
        run_on_terminal({LATHE_PLOT, scratch / "run", "--terminal", "--floor", "0.3"}, columns,
                        {.environment = environment});
    expect_success(result);
    return result.out;
  };
  EXPECT_NE(chart(80, {"TERM=xterm", "NO_COLOR="}).find("\x1b["), std::string::npos);
  for (const int columns : {40, 60, 80, 200}) {
    for (const std::vector<std::string>& environment :
         {std::vector<std::string>{"TERM=xterm", "NO_COLOR=1"}, {"TERM=dumb", "NO_COLOR="}}) {
      const std::string text = chart(columns, environment);
      EXPECT_EQ(text.find('\x1b'), std::string::npos);
      size_t widest = 0;
      for (const std::string& line : lines_on_terminal(text)) {
        widest = std::max<size_t>(widest, std::count_if(line.begin(), line.end(), [](char c) {
                                    return (c & 0xc0) != 0x80;  // each character takes one column
                                  }));
      }
      EXPECT_LT(widest, static_cast<size_t>(columns)) << text;
      EXPECT_GT(widest, static_cast<size_t>(std::min(columns, 128)) - 3) << text;
    }
  }
}

TEST_F(Programs, TextOfFilesCannotCommandATerminal) {
  const std::string text = "\x1b[2Jab\x07 caf\u00e9\u009b31m\n";
  prepare_text(scratch.path(), text, scratch / "wild");
  const Command decode{LATHE_PREPARE, "--decode", scratch / "wild"};
  EXPECT_EQ(run(decode).out, text);
  EXPECT_EQ(run_on_terminal(decode, 80).out, "?[2Jab? caf\u00e9?31m\r\n");
}

}  // namespace
}  // namespace lathe::testing
