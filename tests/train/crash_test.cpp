// The trainer is killed, or its disk fills up, at every call of a save and at seeded moments of a
// whole run. The resumed run ends bit for bit like an undisturbed run. prepare is killed while it
// replaces data.
#include <csignal>
#include <map>
#include <random>

#include "src/data/shard.h"
#include "tests/io/crash_harness.h"
#include "tests/located.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Crash : public TrainTest {
 protected:
  // Runs the trainer in a directory of its own and disturbs it at call `at`.
  CrashResult crash(const fs::path& out, size_t at, const std::string& when) {
    fs::create_directory(out);
    return run_with_crash(
        {.command = train_command(flags(out)), .directory = out, .at = at, .when = when});
  }
  void expect_recovery(const fs::path& out) {
    expect_success(run(train_command(flags(out))));
    expect_same_run(whole(), out);
    EXPECT_EQ(loss_steps(out), loss_steps(whole()));
    fs::remove_all(out);
  }
  Flags flags(const fs::path& out) {
    return with(tiny(out), {{"checkpoint-interval", "5"}, {"keep", "1"}, {"dropout", "0.2"}});
  }
  fs::path whole() { return scratch / "whole"; }

  // The calls of the save after step 10, from the fsync of metrics.jsonl to the end of pruning.
  static std::pair<size_t, size_t> second_save(const std::vector<CrashCall>& calls) {
    size_t first = 0, last = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
      const bool of_save = calls[i].path.find("step-00000010") != std::string::npos;
      if (of_save && first == 0) first = i;  // calls count from 1, so this is the call before
      if (first > 0 && last == 0 && calls[i].path == "metrics.jsonl" && i > first) last = i;
    }
    return {first, last};
  }
};

TEST_F(Crash, EveryCallOfASaveComesInTheDurableOrder) {
  const CrashResult result = crash(whole(), 0, "before");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  for (const std::string& breach : durability_breaches(result.calls, {"metrics.jsonl", "lock"})) {
    ADD_FAILURE() << breach;
  }
  // The metrics of its steps are on disk before a save begins.
  bool synced = true;
  int saves = 0;
  for (const CrashCall& call : result.calls) {
    if (call.path == "metrics.jsonl" && call.name == "write") synced = false;
    if (call.path == "metrics.jsonl" && call.name == "fsync") synced = true;
    if (call.name == "mkdir" && call.path.ends_with(".partial")) {
      EXPECT_TRUE(synced) << call.path;
      ++saves;
    }
  }
  EXPECT_EQ(saves, 3);
}

TEST_F(Crash, KilledAtEveryCallOfASave) {
  const CrashResult result = crash(whole(), 0, "before");
  const auto [first, last] = second_save(result.calls);
  ASSERT_GT(first, 0u);
  ASSERT_GT(last, first + 20);
  for (size_t at = first; at <= last; ++at) {
    const CrashCall& call = result.calls[at - 1];
    for (const char* when : {"before", "torn", "after"}) {
      if (std::string(when) == "torn" && call.bytes == 0) continue;
      SCOPED_TRACE(std::to_string(at) + " " + when + " " + call.name + " " + call.path);
      EXPECT_TRUE(crash(scratch / "out", at, when).killed);
      expect_recovery(scratch / "out");
    }
  }
}

TEST_F(Crash, ADiskThatFillsUpDuringASave) {
  const CrashResult result = crash(whole(), 0, "before");
  const auto [first, last] = second_save(result.calls);
  for (size_t at = first; at <= last; at += 3) {
    const CrashCall& call = result.calls[at - 1];
    if (call.name == "unlink" || call.name == "rmdir") continue;  // these need no space
    SCOPED_TRACE(std::to_string(at) + " " + call.name + " " + call.path);
    const CrashResult failed = crash(scratch / "out", at, "error");
    EXPECT_EQ(failed.exit_code, 1) << failed.output;
    expect_contains(failed.output, "train: cannot ");
    expect_contains(failed.output, "No space left on device\n");
    EXPECT_FALSE(last_checkpoint(scratch / "out").empty());
    expect_recovery(scratch / "out");
  }
}

TEST_F(Crash, KilledAtFiftyMomentsOfARun) {
  const auto begin = std::chrono::steady_clock::now();
  const CrashResult result = crash(whole(), 0, "before");
  const auto duration = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - begin);
  std::mt19937_64 random(20240520);
  const char* const kWhen[] = {"before", "torn", "after"};
  for (int i = 0; i < 25; ++i) {
    const size_t at = 1 + random() % result.calls.size();
    SCOPED_TRACE("call " + std::to_string(at));
    EXPECT_TRUE(crash(scratch / "out", at, kWhen[random() % 3]).killed);
    expect_recovery(scratch / "out");
  }
  for (int i = 0; i < 25; ++i) {  // a moment may be before the start or after the end of the run
    const auto moment = duration * static_cast<int64_t>(random() % 1000) / 1000;
    SCOPED_TRACE("microsecond " + std::to_string(moment.count()));
    Process process(train_command(flags(scratch / "out")));
    ::usleep(static_cast<useconds_t>(moment.count()));
    process.send(SIGKILL);
    process.wait();
    expect_recovery(scratch / "out");
  }
}

TEST_F(Crash, KilledAgainAndAgainARunStillEnds) {
  const CrashResult result = crash(whole(), 0, "before");
  for (size_t at = 11; at < result.calls.size(); at += 12) crash(scratch / "out", at, "after");
  expect_recovery(scratch / "out");
}

class PrepareCrash : public TrainTest {
 protected:
  CrashResult prepare(const std::string& text, size_t at = 0, const std::string& when = "before") {
    write_text(scratch / "text", text);
    return run_with_crash(
        {.command = command_of(
             located("LATHE_PREPARE", LATHE_PREPARE),
             {{"input", scratch / "text"}, {"shard-tokens", "40"}, {"force", ""}, {"out", out()}}),
         .directory = out(),
         .at = at,
         .when = when});
  }
  // The tokens of both splits, or "mixed" if they are refused for that reason.
  std::string found() {
    try {
      const TokenSet train(out(), "train"), val(out(), "val");
      return fmt::format("{} + {}", train.size(), val.size());
    } catch (const UserError& error) {
      expect_contains(error.what(), "may hold old and new data mixed");
      expect_contains(
          run(train_command(with(tiny(scratch / "run"), {{"data", out()}, {"vocab-size", "2"}})))
              .err,
          "may hold old and new data mixed");
      return "mixed";
    }
  }
  fs::path out() { return scratch / "data"; }
};

// A GPT-2 preset needs no tokenizer beside its data, so a missing tokenizer.json is not what stops
// the run.
TEST_F(PrepareCrash, LeavesTheOldDataTheNewOrWhatIsRefused) {
  const std::string before(200, 'a'), after(100, 'b');
  fs::create_directory(out());
  ASSERT_EQ(prepare(before).exit_code, 0);
  const CrashResult whole = prepare(after);
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  ASSERT_EQ(found(), "90 + 10");
  std::map<std::string, int> seen;
  for (size_t at = 1; at <= whole.calls.size(); ++at) {
    const CrashCall& call = whole.calls[at - 1];
    SCOPED_TRACE(std::to_string(at) + " " + call.name + " " + call.path);
    ASSERT_EQ(prepare(before).exit_code, 0);
    ASSERT_EQ(found(), "180 + 20");
    EXPECT_TRUE(prepare(after, at).killed);
    const std::string left = found();
    EXPECT_TRUE(left == "180 + 20" || left == "90 + 10" || left == "mixed") << left;
    ++seen[left];
  }
  EXPECT_EQ(seen.size(), 3u);
}

}  // namespace
}  // namespace lathe::testing
