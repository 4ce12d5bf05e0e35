// No work is lost to other processes, damaged files, signals, closed pipes, full disks or changed
// data, and the files of others in --out stay.
#include <csignal>
#include <cstring>

#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "src/io/trainer_state.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class NothingLost : public TrainTest {
 protected:
  static ProcessResult train(const Flags& flags) { return run(train_command(flags)); }
  // The script finds the command in "$@".
  static Command shell(const std::string& script, const Flags& flags) {
    Command command = train_command(flags);
    command.insert(command.begin(), {"/bin/bash", "-c", script, "bash"});
    return command;
  }
  // A run long enough that a signal arrives during it.
  static Flags endless(const fs::path& out) {
    return with(tiny(out), {{"steps", "10000000"}, {"lr-decay-steps", "100"}});
  }
  static void wait_for_steps(Process& process, const fs::path& out, uintmax_t bytes = 2000) {
    const fs::path metrics = out / "metrics.jsonl";
    std::error_code absent;
    while (process.running() && (!fs::exists(metrics) || fs::file_size(metrics, absent) < bytes))
      ::usleep(500);
  }
  // 0: none.
  static int64_t last_step(const fs::path& out) {
    const std::vector<int64_t> steps = loss_steps(out);
    return steps.empty() ? 0 : steps.back();
  }
  // Resumes `stopped` for `more` steps and compares it with an uninterrupted run.
  void expect_to_go_on(const fs::path& stopped, const Flags& flags, int more = 5) {
    const std::string last = last_checkpoint(stopped);
    ASSERT_FALSE(last.empty());
    const std::string steps = std::to_string(std::stoll(last.substr(5)) + more);
    expect_success(train(with(flags, {{"out", stopped}, {"steps", steps}})));
    expect_success(train(with(flags, {{"out", scratch / "whole"}, {"steps", steps}})));
    expect_same_run(scratch / "whole", stopped);
  }
  // A copy of the data with token `at` of a split replaced.
  fs::path data_with(const std::string& split, size_t at, uint16_t token) {
    const fs::path changed = scratch / ("data-" + split);
    fs::copy(data(), changed, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    std::string bytes = read_text(changed / (split + "_000000.bin"));
    std::memcpy(bytes.data() + 1024 + 2 * at, &token, sizeof(token));
    write_text(changed / (split + "_000000.bin"), bytes);
    return changed;
  }
};

// ---- --out

TEST_F(NothingLost, ASecondRunInTheSameDirectoryIsRefused) {
  const fs::path out = scratch / "out";
  Process first(train_command(endless(out)));
  wait_for_steps(first, out);
  const ProcessResult second = train(endless(out));
  EXPECT_EQ(second.exit_code, 2) << second.err;
  expect_contains(second.err,
                  out.string() + " is in use by process " + std::to_string(first.pid()));
  first.send(SIGTERM);
  expect_success(first.wait());
  EXPECT_FALSE(fs::exists(out / "lock"));
  fs::create_directory(scratch / "whole");
  expect_to_go_on(out, endless(out));
}

TEST_F(NothingLost, ARestartWaitsForAPredecessorThatIsEnding) {
  const fs::path out = scratch / "out";
  Process first(train_command(endless(out)));
  wait_for_steps(first, out);
  first.send(SIGSTOP);
  first.send(SIGTERM);
  Process second(train_command(endless(out)));
  ::usleep(300000);
  first.send(SIGCONT);
  expect_success(first.wait());
  const int64_t saved = std::stoll(last_checkpoint(out).substr(5));
  while (second.running() && last_step(out) <= saved) ::usleep(500);
  second.send(SIGTERM);
  expect_success(second.wait());
  expect_to_go_on(out, endless(out));
}

TEST_F(NothingLost, ADamagedCheckpointIsSetAsideAndNeverOutlivesAGoodOne) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"checkpoint-interval", "4"}, {"steps", "8"}})));
  ASSERT_EQ(checkpoints(out), (std::vector<std::string>{"step-00000004", "step-00000008"}));
  std::string model = read_text(out / "step-00000008/model.safetensors");
  model[model.size() / 2] = static_cast<char>(model[model.size() / 2] ^ 1);
  write_text(out / "step-00000008/model.safetensors", model);
  const ProcessResult result = train(with(tiny(out), {{"steps", "6"}, {"keep", "1"}}));
  expect_success(result);
  expect_contains(result.err, "step-00000008.damaged");
  EXPECT_EQ(checkpoints(out), std::vector<std::string>{"step-00000006"});
  EXPECT_TRUE(fs::exists(out / "step-00000008.damaged/manifest.json"));
  expect_success(train(tiny(out)));
  expect_success(train(with(tiny(scratch / "whole"), {{"eval-interval", "0"}})));
  EXPECT_EQ(loss_steps(out), loss_steps(scratch / "whole"));
  EXPECT_TRUE(read_text(out / "step-00000012/model.safetensors") ==
              read_text(scratch / "whole/step-00000012/model.safetensors"));
}

TEST_F(NothingLost, BadStepsPushOutNoGoodCheckpoint) {
  const fs::path out = scratch / "out";
  const ProcessResult result = train(with(tiny(out), {{"lr", "100"},
                                                      {"min-lr", "0"},
                                                      {"warmup-steps", "0"},
                                                      {"steps", "400"},
                                                      {"lr-decay-steps", "400"},
                                                      {"eval-interval", "0"},
                                                      {"grad-clip", "0"},
                                                      {"checkpoint-interval", "1"},
                                                      {"keep", "2"}}));
  expect_refusal(result, 1, "train", {"10 steps in a row", out.string()});
  std::istringstream lines(read_text(out / "metrics.jsonl"));
  int64_t good = 0;
  for (std::string line; std::getline(lines, line);) {
    const json step = parse_json(line);
    if (step["loss"].is_number() && step["grad_norm"].is_number()) good = step["step"];
  }
  ASSERT_GE(good, 2) << "the run fails too early to show anything";
  EXPECT_EQ(checkpoints(out),
            (std::vector<std::string>{checkpoint_name(good - 1), checkpoint_name(good),
                                      checkpoint_name(good + 10)}));
  expect_contains(result.out, "no checkpoint after");
}

TEST_F(NothingLost, ALinkInPlaceOfALeftoverIsNotFollowed) {
  const fs::path out = scratch / "out", precious = scratch / "precious";
  fs::create_directories(out);
  fs::create_directory(precious);
  write_text(precious / "thesis.tex", "years of work");
  for (const char* name : {"step-00000012.partial", "step-00000003.pruned"})
    fs::create_directory_symlink(precious, out / name);
  expect_success(train(tiny(out)));
  EXPECT_EQ(read_text(precious / "thesis.tex"), "years of work");
  EXPECT_EQ(last_checkpoint(out), "step-00000012");
}

TEST_F(NothingLost, AFileInPlaceOfALeftoverStopsNoSave) {
  const fs::path out = scratch / "out";
  fs::create_directories(out);
  write_text(out / "step-00000012.partial", "somebody's");
  expect_success(train(tiny(out)));
  EXPECT_EQ(last_checkpoint(out), "step-00000012");
  EXPECT_EQ(read_text(out / "step-00000012.partial.damaged"), "somebody's");
}

TEST_F(NothingLost, WhatALostRunMeasuredStays) {
  const fs::path out = scratch / "out";
  Process killed(train_command(endless(out)));
  wait_for_steps(killed, out);
  killed.send(SIGKILL);
  killed.wait();
  const std::string measured = read_text(out / "metrics.jsonl");
  const ProcessResult result = train(tiny(out));
  expect_success(result);
  EXPECT_EQ(read_text(out / "metrics.jsonl.1"), measured);
  expect_contains(result.err, "metrics.jsonl.1");
}

TEST_F(NothingLost, FilesOfOthersStay) {
  for (const auto& [name, text] : std::vector<std::pair<std::string, std::string>>{
           {"metrics.jsonl", "one line without a newline"},
           {"metrics.jsonl", "notes\n"},
           {"config.toml", "n-layer = 1\n"}}) {
    SCOPED_TRACE(text);
    const fs::path out = scratch / name;
    fs::create_directories(out);
    write_text(out / name, text);
    expect_refusal(train(tiny(out)), 2, "train", {(out / name).string()});
    EXPECT_EQ(read_text(out / name), text);
  }
}

TEST_F(NothingLost, ADirectoryThatIsRemovedDuringARunIsMadeAgain) {
  const fs::path out = scratch / "out";
  Process process(train_command(endless(out)));
  wait_for_steps(process, out);
  fs::remove_all(out);
  process.send(SIGTERM);
  expect_success(process.wait());
  ASSERT_FALSE(loss_steps(out).empty());
  EXPECT_EQ(loss_steps(out).front(), 1);
  EXPECT_EQ(checkpoint_name(last_step(out)), last_checkpoint(out));
  expect_contains(read_text(out / "config.toml"), "n-layer=1\n");
  expect_to_go_on(out, endless(out));
}

// ---- signals, pipes, limits

TEST_F(NothingLost, ASignalEndsAnEvaluation) {
  const fs::path out = scratch / "out";
  Process process(train_command(with(endless(out), {{"n-layer", "4"},
                                                    {"n-head", "8"},
                                                    {"n-embd", "1024"},
                                                    {"batch-size", "1"},
                                                    {"eval-batches", "0"}})));
  wait_for_steps(process, out, 0);  // the evaluation before the first step runs or is next
  process.send(SIGTERM);
  const ProcessResult result = process.wait();
  expect_success(result);
  expect_contains(result.out, "stopped");
  EXPECT_EQ(read_text(out / "metrics.jsonl"), "");
}

TEST_F(NothingLost, ASignalEndsASample) {
  const fs::path out = scratch / "out";
  Process process(train_command(
      with(tiny(out),
           {{"sample-interval", "4"}, {"sample-tokens", "1000000000"}, {"eval-interval", "0"}})));
  wait_for_steps(process, out, 0);
  process.send(SIGTERM);
  expect_success(process.wait());
}

TEST_F(NothingLost, APipeThatNobodyReadsAnyMoreEndsNoRun) {
  const fs::path out = scratch / "out";
  expect_success(run(shell("\"$@\" | head -n 3", tiny(out))));
  expect_success(train(tiny(scratch / "whole")));
  expect_same_run(scratch / "whole", out);
}

TEST_F(NothingLost, ALostTerminalIsAReasonToSave) {
  const fs::path out = scratch / "out";
  Process process(train_command(endless(out)));
  wait_for_steps(process, out);
  process.send(SIGHUP);
  expect_success(process.wait());
  expect_to_go_on(out, endless(out));
}

TEST_F(NothingLost, MetricsThatCannotBeWrittenCostNoStep) {
  const fs::path out = scratch / "out";
  // 64 KiB are enough for the checkpoint and for about 250 lines.
  const Flags flags = with(endless(out), {{"eval-interval", "0"}});
  expect_refusal(run(shell("ulimit -f 64; exec \"$@\"", flags)), 1, "train",
                 {"metrics.jsonl", "File too large"});
  EXPECT_EQ(checkpoint_name(last_step(out) + 1), last_checkpoint(out));
  expect_success(train(with(flags, {{"steps", std::to_string(last_step(out) + 3)}})));
}

// ---- data

TEST_F(NothingLost, ATokenBeyondTheVocabularyCostsNoStep) {
  for (const auto& [program, name] :
       {std::pair<std::string, std::string>{LATHE_TRAIN, "out"}, {LATHE_TRAIN_LATE, "late"}}) {
    SCOPED_TRACE(name);
    const fs::path bad = data_with("train", 2000, 60000), out = scratch / name;
    const Flags flags = with(endless(out), {{"eval-interval", "0"}});
    const ProcessResult result =
        run(command_of(program, with(flags, {{"data", bad}, {"total-batch-size", "32"}})));
    expect_refusal(result, 2, "train", {"train_000000.bin", "token 60000"});
    EXPECT_EQ(checkpoint_name(last_step(out)), last_checkpoint(out));
    fs::remove_all(scratch / "whole");
    expect_to_go_on(out, with(flags, {{"total-batch-size", "32"}}));
  }
}

TEST_F(NothingLost, AShardThatShrinksIsNamedAndCostsNoStep) {
  const fs::path own = scratch / "data", out = scratch / "out";
  fs::copy(data(), own);
  const Flags flags = with(endless(out), {{"data", own}, {"eval-interval", "0"}});
  Process process(train_command(flags));
  wait_for_steps(process, out);
  fs::resize_file(own / "train_000000.bin", 0);
  const ProcessResult result = process.wait();
  expect_refusal(result, 1, "train", {(own / "train_000000.bin").string(), "now has 0"});
  EXPECT_EQ(checkpoint_name(last_step(out)), last_checkpoint(out));
  fs::copy(data(), own, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  expect_to_go_on(out, flags);
}

TEST_F(NothingLost, OtherDataAfterAResumeAreSaid) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"steps", "4"}})));
  const ProcessResult same = train(with(tiny(out), {{"steps", "6"}}));
  expect_success(same);
  EXPECT_EQ(same.err, "");
  const ProcessResult other =
      train(with(tiny(out), {{"data", data_with("train", 100, 3)}, {"steps", "8"}}));
  expect_success(other);
  expect_contains(other.err, "was made with other data");
}

TEST_F(NothingLost, DataOfAnotherTokenizerAreRefused) {
  const fs::path out = scratch / "out", other = scratch / "other";
  expect_success(train(with(tiny(out), {{"steps", "4"}})));
  // The same number of characters, but one of them differs.
  std::string text = read_text(data().parent_path() / "stories.txt");
  for (size_t at = text.find('e'); at != std::string::npos; at = text.find('e', at))
    text.replace(at, 1, "é");
  prepare_text(scratch.path(), text, other);
  for (const Flags& more :
       {Flags{{"steps", "8"}}, Flags{{"init", out / "step-00000004"}, {"out", scratch / "new"}}}) {
    Flags flags = with(tiny(out), with({{"data", other}}, more));
    if (more.contains("init"))
      for (const char* size : {"n-layer", "n-head", "n-embd"}) flags.erase(size);
    expect_refusal(train(flags), 2, "train",
                   {"step-00000004", other.string(), "a different tokenizer"});
  }
  EXPECT_EQ(checkpoints(out), std::vector<std::string>{"step-00000004"});
}

// ---- checkpoints that do not fit

// Writes a file of a checkpoint and puts its digest into the manifest.
void replace_file(const fs::path& checkpoint, const std::string& name, const std::string& text) {
  Manifest manifest = read_manifest(checkpoint);
  write_text(checkpoint / name, text);
  manifest.files[name] = digest_file(checkpoint / name);
  write_text(checkpoint / "manifest.json", to_json(manifest));
}

TEST_F(NothingLost, OptimizerFilesAreThoseOfTheManifest) {
  const fs::path out = scratch / "out", from = out / "step-00000006";
  expect_success(train(tiny(scratch / "whole")));
  expect_success(train(with(tiny(out), {{"steps", "6"}, {"eval-interval", "12"}})));
  // Stray files of a different number of ranks and another run.
  for (const char* stray :
       {"optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"})
    fs::copy(scratch / "whole/step-00000012/optimizer-00000-of-00001.safetensors", from / stray);
  expect_success(train(tiny(out)));
  EXPECT_TRUE(read_text(out / "step-00000012/model.safetensors") ==
              read_text(scratch / "whole/step-00000012/model.safetensors"));
  // A manifest with a missing entry.
  for (const char* missing : {"optimizer-00000-of-00001.safetensors", "model.safetensors",
                              "trainer.json", "config.json"}) {
    SCOPED_TRACE(missing);
    const fs::path copy = scratch / "copy";
    fs::remove_all(copy);
    fs::copy(scratch / "whole", copy, fs::copy_options::recursive);
    const fs::path checkpoint = copy / "step-00000012";
    Manifest manifest = read_manifest(checkpoint);
    manifest.files.erase(missing);
    write_text(checkpoint / "manifest.json", to_json(manifest));
    const ProcessResult result = train(with(tiny(copy), {{"steps", "14"}}));
    EXPECT_EQ(result.exit_code, 2) << result.out;
    expect_contains(result.err, std::string("does not list ") + missing);
    expect_contains(result.err, "holds no valid checkpoint");
  }
}

TEST_F(NothingLost, ATrainerStateThatDoesNotFitIsRefusedAndAnOlderOneIsRead) {
  const fs::path out = scratch / "out", from = out / "step-00000006";
  expect_success(train(with(tiny(out), {{"steps", "6"}})));
  const json sound = parse_json(read_text(from / "trainer.json"));
  const auto expect_refused = [&](const char* key, const json& wrong) {
    SCOPED_TRACE(key);
    json state = sound;
    state[json::json_pointer(key)] = wrong;
    replace_file(from, "trainer.json", state.dump());
    expect_refusal(train(with(tiny(out), {{"steps", "8"}})), 2, "train", {"trainer.json"});
  };
  expect_refused("/step", 7);
  expect_refused("/seed", 1);
  expect_refused("/loader/step", 5);
  expect_refused("/loader/sampling", "sequential");
  expect_refused("/skipped_steps", 7);
  // A state of before the gradient norm became exact.
  json older = sound;
  older["version"] = 1;
  older["layout"].erase("reduce_each");
  replace_file(from, "trainer.json", older.dump());
  const ProcessResult resumed = train(with(tiny(out), {{"steps", "8"}}));
  expect_success(resumed);
  expect_contains(resumed.err, "an older lathe, which rounded the gradient norm otherwise");
  expect_contains(resumed.err, "not bit for bit");
  EXPECT_EQ(parse_json(read_text(out / "step-00000008/trainer.json"))["version"],
            kTrainerStateVersion);
}

TEST_F(NothingLost, ACheckpointOfAnotherVersionIsNotPassedOver) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"checkpoint-interval", "4"}, {"steps", "8"}})));
  std::string manifest = read_text(out / "step-00000008/manifest.json");
  manifest.replace(manifest.find("\"version\": 1"), 12, "\"version\": 9");
  write_text(out / "step-00000008/manifest.json", manifest);
  expect_refusal(train(tiny(out)), 2, "train", {"step-00000008", "format version 9"});
  EXPECT_EQ(checkpoints(out), (std::vector<std::string>{"step-00000004", "step-00000008"}));
}

}  // namespace
}  // namespace lathe::testing
