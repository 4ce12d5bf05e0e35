// What the programs do beside training: plans, evaluations, benchmarks, configuration files, text.
#include <algorithm>
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

// A file that is opened must not become what a closed stream's number names, and nothing that is
// told beside the work stops it.
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
    // A damaged checkpoint is passed over, which is told on stderr.
    const Flags flags = with(tiny(out), {{"steps", std::to_string(steps++)}, {"keep", "9"}});
    expect_success(run(train_command(flags), {.err = stream}));
    fs::remove_all(out / last_checkpoint(out));
  }
}

// ---- Terminals.

// What stands in each line in the end: what comes after the last return to its beginning.
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
  // The first, those before an evaluation, and the last.
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
