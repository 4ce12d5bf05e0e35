// Kills a save, or fails it, at every single call that changes the disk.
#include <cerrno>

#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/io/trainer_state.h"
#include "tests/io/crash_harness.h"
#include "tests/io/scratch.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

CrashRun save_of(const fs::path& out, int step, int keep = 2) {
  return {.command = {LATHE_CHECKPOINT_DRIVER, out.string(), std::to_string(step),
                      std::to_string(keep)},
          .directory = out};
}

// Checkpoints 1 and 2, and what a crash left of an earlier save of 3.
void prepare(const fs::path& out) {
  fs::create_directory(out);
  ASSERT_EQ(run_with_crash(save_of(out, 1)).exit_code, 0);
  ASSERT_EQ(run_with_crash(save_of(out, 2)).exit_code, 0);
  fs::create_directory(out / "step-00000003.partial");
  spill(out / "step-00000003.partial/model.safetensors.partial", "half a file");
}

void restore(const fs::path& out, const fs::path& from) {
  fs::remove_all(out);
  fs::copy(from, out, fs::copy_options::recursive);
}

// Whatever happened, the latest checkpoint is 2 or 3 and is complete. Returns which.
int64_t check_latest(const fs::path& out) {
  const auto latest = find_latest_checkpoint(out);
  if (!latest) {
    ADD_FAILURE() << "no checkpoint is left";
    return -1;
  }
  const int64_t step = verify_checkpoint(*latest).step;
  EXPECT_TRUE(step == 2 || step == 3) << step;
  EXPECT_EQ(read_trainer_state(*latest / "trainer.json").step, step);
  const SafetensorsReader weights(*latest / "model.safetensors");
  std::vector<float> values(64 * 32);
  weights.read_as_float("wte.weight", values.data(), 64 * 32);
  EXPECT_EQ(values, std::vector<float>(64 * 32, static_cast<float>(step)));
  EXPECT_TRUE(fs::exists(*latest / "config.json"));
  return step;
}

std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

const std::vector<std::string> kSettled{"step-00000002", "step-00000003"};

TEST(CrashTest, CallsComeInTheDurableOrder) {
  const Scratch scratch;
  const fs::path out = scratch / "out";
  prepare(out);
  const CrashResult result = run_with_crash(save_of(out, 3));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  for (const std::string& breach : durability_breaches(result.calls)) ADD_FAILURE() << breach;
  std::vector<std::string> order;
  for (const CrashCall& call : result.calls) {
    order.push_back(call.name + " " + call.path + (call.to.empty() ? "" : " " + call.to));
  }
  const std::string p = "step-00000003.partial";
  const auto atomic = [&](const std::string& name) {
    const std::string final_name = p + "/" + name;
    return std::vector<std::string>{
        "open " + final_name + ".partial", "write " + final_name + ".partial",
        "fsync " + final_name + ".partial", "rename " + final_name + ".partial " + final_name,
        "fsync " + p};
  };
  std::vector<std::string> expected{"unlink " + p + "/model.safetensors.partial", "rmdir " + p,
                                    "mkdir " + p};
  const auto append = [&](const std::vector<std::string>& more) {
    expected.insert(expected.end(), more.begin(), more.end());
  };
  append(atomic("model.safetensors"));
  append(atomic("trainer.json"));
  append(atomic("config.json"));
  append({"fsync " + p + "/config.json"});
  append(atomic("manifest.json"));
  append({"rename " + p + " step-00000003", "fsync ."});
  append({"rename step-00000001 step-00000001.pruned", "fsync ."});
  for (const char* name : {"config.json", "manifest.json", "model.safetensors", "trainer.json"}) {
    append({std::string("unlink step-00000001.pruned/") + name});
  }
  append({"rmdir step-00000001.pruned"});
  EXPECT_EQ(order, expected);
}

TEST(CrashTest, AKillAtAnyCallLeavesTheFormerOrTheNewCheckpoint) {
  const Scratch scratch;
  const fs::path out = scratch / "out", before = scratch / "before";
  prepare(before);
  restore(out, before);
  const size_t calls = run_with_crash(save_of(out, 3)).calls.size();
  ASSERT_GT(calls, 25u);
  int former = 0, latter = 0;
  for (const char* when : {"before", "torn", "after"}) {
    for (size_t at = 1; at <= calls; ++at) {
      SCOPED_TRACE(std::string(when) + " call " + std::to_string(at));
      restore(out, before);
      CrashRun run = save_of(out, 3);
      run.at = at;
      run.when = when;
      const CrashResult crash = run_with_crash(run);
      ASSERT_TRUE(crash.killed) << crash.output;
      ASSERT_EQ(crash.calls.size(), at);
      ++(check_latest(out) == 2 ? former : latter);
      // The next save works, and cleans up.
      const CrashResult again = run_with_crash(save_of(out, 3));
      ASSERT_EQ(again.exit_code, 0) << again.output;
      EXPECT_EQ(check_latest(out), 3);
      EXPECT_EQ(names_in(out), kSettled);
    }
  }
  EXPECT_GT(former, 0);
  EXPECT_GT(latter, 0);
}

TEST(CrashTest, AnErrorAtAnyCallIsReportedAndLosesNothing) {
  const Scratch scratch;
  const fs::path out = scratch / "out", before = scratch / "before";
  prepare(before);
  restore(out, before);
  const size_t calls = run_with_crash(save_of(out, 3)).calls.size();
  for (const auto& [error, exit_code, words] :
       {std::tuple(ENOSPC, 1, "No space left on device"), std::tuple(EIO, 1, "Input/output error"),
        std::tuple(EROFS, 2, "Read-only file system")}) {
    for (size_t at = 1; at <= calls; ++at) {
      SCOPED_TRACE(std::string(words) + " from call " + std::to_string(at));
      restore(out, before);
      CrashRun run = save_of(out, 3);
      run.at = at;
      run.when = "error";
      run.error_number = error;
      const CrashResult result = run_with_crash(run);
      // A removal that fails because the disk is read-only is reported but does not end the run.
      const bool only_kept = result.exit_code == 0 && error == EROFS && at + 5 > calls;
      EXPECT_TRUE(only_kept || result.exit_code == exit_code) << result.exit_code << result.output;
      EXPECT_CONTAINS(result.output, words);
      EXPECT_CONTAINS(result.output, out.string());
      check_latest(out);
    }
  }
}

TEST(CrashTest, AFailedSaveGivesItsSpaceBack) {
  const Scratch scratch;
  const fs::path out = scratch / "out";
  prepare(out);
  CrashRun run = save_of(out, 3);
  run.at = 5;  // the first write
  run.when = "error";
  const CrashResult result = run_with_crash(run);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.calls[4].name, "write");
  EXPECT_EQ(names_in(out), (std::vector<std::string>{"step-00000001", "step-00000002"}));
}

// The checker itself must be able to fail.
TEST(DurabilityBreaches, FindsEachKind) {
  const auto breaches = [](std::vector<CrashCall> calls) { return durability_breaches(calls); };
  EXPECT_EQ(breaches({{"open", 0, "a.partial", ""},
                      {"write", 9, "a.partial", ""},
                      {"fsync", 0, "a.partial", ""},
                      {"rename", 0, "a.partial", "a"},
                      {"fsync", 0, ".", ""}})
                .size(),
            0u);
  EXPECT_EQ(
      breaches(
          {{"write", 9, "a.partial", ""}, {"rename", 0, "a.partial", "a"}, {"fsync", 0, ".", ""}})
          .size(),
      2u);  // fsynced after the rename, and never
  EXPECT_EQ(breaches({{"fsync", 0, "a.partial", ""},
                      {"write", 9, "a.partial", ""},
                      {"rename", 0, "a.partial", "a"},
                      {"fsync", 0, ".", ""}})
                .size(),
            2u);
  EXPECT_EQ(breaches({{"rename", 0, "a.partial", "a"}}).size(), 1u);
  EXPECT_EQ(breaches({{"rename", 0, "d/a.partial", "d/a"},
                      {"rename", 0, "d", "e"},
                      {"fsync", 0, ".", ""},
                      {"fsync", 0, "d", ""}})
                .size(),
            1u);
  EXPECT_EQ(breaches({{"write", 9, "a", ""}, {"fsync", 0, "a", ""}}).size(), 2u);
  EXPECT_EQ(durability_breaches({{"write", 9, "log", ""}}, {"log"}).size(), 0u);
}

}  // namespace
}  // namespace lathe
