// The loop on a device that lags behind the host (late_device.cpp): the run equals the CPU's bit
// for bit, and the device always has a step in its queue.
#include <csignal>

#include "src/io/json.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Late : public TrainTest {
 protected:
  static ProcessResult train(const Flags& flags) { return run(train_command(flags)); }
  static ProcessResult late(const Flags& flags) {
    const ProcessResult result = run(command_of(LATHE_TRAIN_LATE, flags));
    expect_success(result);
    return result;
  }
};

TEST_F(Late, TheRunIsThatOfACpu) {
  for (const auto& [name, more] : std::map<std::string, Flags>{
           {"fp32", {}},
           {"bf16, dropout and accumulation",
            {{"dtype", "bf16"}, {"dropout", "0.3"}, {"total-batch-size", "48"}}},
           {"recomputation", {{"n-layer", "3"}, {"dropout", "0.1"}, {"recompute", "block"}}},
           {"the host updates", {{"dtype", "bf16"}, {"offload", "states=cpu"}}},
           {"states in a file", {{"offload", "states=" + fs::temp_directory_path().string()}}},
           {"a step between evaluations", {{"eval-interval", "1"}, {"eval-batches", "0"}}},
           {"no evaluation", {{"eval-interval", "0"}}},
           {"samples and checkpoints",
            {{"sample-interval", "5"},
             {"sample-tokens", "11"},
             {"checkpoint-interval", "3"},
             {"sampling", "sequential"}}}}) {
    SCOPED_TRACE(name);
    const TempDir runs;
    expect_success(train(with(tiny(runs / "cpu"), more)));
    const ProcessResult result = late(with(tiny(runs / "late"), more));
    expect_same_run(runs / "cpu", runs / "late");
    expect_contains(result.out,
                    fmt::format("at most {} steps in flight", name.starts_with("a step") ? 1 : 2));
  }
}

TEST_F(Late, EvaluatesAndTimesAsTheCpuDoes) {
  expect_success(train(tiny(scratch / "run")));
  const ProcessResult there = train(with(tiny(scratch / "run"), {{"eval-only", ""}}));
  const ProcessResult here = late(with(tiny(scratch / "run"), {{"eval-only", ""}}));
  const size_t loss = there.out.find("val_loss");
  ASSERT_NE(loss, std::string::npos);
  expect_contains(here.out, there.out.substr(loss));
  expect_contains(late(with(tiny(scratch / "none"), {{"benchmark", ""}})).out, "over 12 steps");
}

// The times are the device's: the host finishes enqueueing a step long before the device starts it.
TEST_F(Late, PhasesAreTimedOnTheDevice) {
  late(with(tiny(scratch / "run"), {{"total-batch-size", "64"}}));
  double phases = 0, all = 0;
  std::istringstream lines(read_text(scratch / "run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json value = parse_json(line);
    if (!value.contains("loss")) continue;
    for (const char* phase : {"forward_ms", "backward_ms", "optimizer_ms"}) {
      EXPECT_GT(value[phase].get<double>(), 0) << line;
      phases += value[phase].get<double>();
    }
    EXPECT_GT(value["dt_ms"].get<double>(), 0) << line;
    all += value["dt_ms"].get<double>();
  }
  EXPECT_LE(phases, all);
}

TEST_F(Late, StoppedByASignalAndResumedIsTheSameRun) {
  const fs::path whole = scratch / "whole", stopped = scratch / "stopped";
  const Flags longer = {{"steps", "100000"}, {"lr-decay-steps", "100"}, {"dropout", "0.1"}};
  Process process(command_of(LATHE_TRAIN_LATE, with(tiny(stopped), longer)));
  std::error_code absent;
  while (process.running() && (!fs::exists(stopped / "metrics.jsonl") ||
                               fs::file_size(stopped / "metrics.jsonl", absent) < 2000)) {
    ::usleep(500);
  }
  process.send(SIGTERM);
  expect_success(process.wait());
  const int64_t step = std::stoll(last_checkpoint(stopped).substr(5));
  EXPECT_EQ(loss_steps(stopped).back(), step);
  const Flags rest = with(longer, {{"steps", std::to_string(step + 6)}});
  late(with(tiny(stopped), rest));
  expect_success(train(with(tiny(whole), rest)));
  expect_same_run(whole, stopped);
}

TEST_F(Late, PlansOfMatrixProductsGoThroughTheCheckpoint) {
  const auto plans = [&] {
    const fs::path file = scratch / "run" / last_checkpoint(scratch / "run") / "trainer.json";
    const json state = parse_json(read_text(file));
    return state.contains("matmul_plans") ? state["matmul_plans"].get<std::string>() : "";
  };
  late(with(tiny(scratch / "run"), {{"steps", "2"}}));
  EXPECT_EQ(plans(), "plans of a late device\t");
  late(with(tiny(scratch / "run"), {{"steps", "4"}}));
  EXPECT_EQ(plans(), "plans of a late device\tplans of a late device\t");
  expect_success(train(with(tiny(scratch / "run"), {{"steps", "6"}})));  // the CPU has none
  EXPECT_EQ(plans(), "");
}

}  // namespace
}  // namespace lathe::testing
