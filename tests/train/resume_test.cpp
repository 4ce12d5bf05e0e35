// A run that is stopped and resumed equals one that never stopped, bit for bit.
#include <csignal>

#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Resume : public TrainTest {
 protected:
  ProcessResult train(const Flags& flags) { return run(train_command(flags)); }

  // Starts a run that will not end by itself and sends it a signal after `steps` steps.
  ProcessResult signalled(const Flags& flags, int signal) {
    Process process(train_command(flags));
    const fs::path metrics = fs::path(flags.at("out")) / "metrics.jsonl";
    std::error_code absent;
    while (process.running() && (!fs::exists(metrics) || fs::file_size(metrics, absent) < 2000)) {
      ::usleep(500);
    }
    process.send(signal);
    return process.wait();
  }
};

struct Case {
  const char* name;
  Flags flags;
};

TEST_F(Resume, InTwoPartsIsBitwiseTheWholeRun) {
  for (const auto& [name, more] : std::vector<Case>{
           {"fp32", {}},
           {"bf16", {{"dtype", "bf16"}}},
           {"bf16, rounded stochastically", {{"dtype", "bf16"}, {"stochastic-rounding", ""}}},
           {"dropout and accumulation", {{"dropout", "0.3"}, {"total-batch-size", "32"}}},
           {"bf16, dropout and accumulation",
            {{"dtype", "bf16"}, {"dropout", "0.3"}, {"total-batch-size", "32"}}},
           {"sequential", {{"sampling", "sequential"}, {"dropout", "0.1"}}},
           {"sequential over an epoch", {{"sampling", "sequential"}, {"batch-size", "60"}}},
           {"biases and samples",
            {{"bias", "true"}, {"sample-interval", "5"}, {"sample-tokens", "5"}}}}) {
    SCOPED_TRACE(name);
    const TempDir runs;
    const fs::path whole = runs / "whole", parts = runs / "parts";
    expect_success(train(with(tiny(whole), more)));
    EXPECT_EQ(loss_steps(whole).size(), 12u);
    expect_success(train(with(with(tiny(parts), more), {{"steps", "5"}})));
    expect_success(train(with(tiny(parts), more)));
    // The first part ended with an evaluation of its own.
    const auto repeatable = repeatable_metrics(parts);
    EXPECT_EQ(validation_steps(parts), (std::vector<int64_t>{0, 4, 5, 8, 12}));
    std::vector<std::string> without;
    for (const std::string& line : repeatable) {
      if (!line.starts_with("{\"step\":5,\"val_loss\"")) without.push_back(line);
    }
    EXPECT_EQ(without, repeatable_metrics(whole));
    for (const char* file : {"model.safetensors", "optimizer-00000-of-00001.safetensors"}) {
      EXPECT_TRUE(read_text(whole / "step-00000012" / file) ==
                  read_text(parts / "step-00000012" / file))
          << file;
    }
  }
}

TEST_F(Resume, WithAnotherLevelOfRecomputationIsBitwise) {
  const Flags more = {{"n-layer", "3"}, {"dropout", "0.2"}, {"total-batch-size", "32"}};
  const fs::path whole = scratch / "whole", parts = scratch / "parts";
  expect_success(train(with(tiny(whole), more)));
  for (const auto& [steps, recompute] : std::vector<std::pair<const char*, const char*>>{
           {"4", "gelu"}, {"8", "layernorm"}, {"12", "block"}}) {
    expect_success(
        train(with(with(tiny(parts), more), {{"steps", steps}, {"recompute", recompute}})));
  }
  expect_same_run(whole, parts);
}

TEST_F(Resume, AFinishedRunHasNothingLeftToDo) {
  expect_success(train(tiny(scratch / "a")));
  expect_success(train(tiny(scratch / "b")));
  expect_success(train(tiny(scratch / "b")));
  expect_same_run(scratch / "a", scratch / "b");
}

TEST_F(Resume, ByTheNameOfACheckpoint) {
  const fs::path whole = scratch / "whole", first = scratch / "first", then = scratch / "then";
  expect_success(train(tiny(whole)));
  expect_success(train(with(tiny(first), {{"checkpoint-interval", "5"}, {"keep", "9"}})));
  EXPECT_EQ(checkpoints(first),
            (std::vector<std::string>{"step-00000005", "step-00000010", "step-00000012"}));
  expect_success(train(with(tiny(then), {{"resume", first / "step-00000005"}})));
  EXPECT_EQ(loss_steps(then), (std::vector<int64_t>{6, 7, 8, 9, 10, 11, 12}));
  for (const char* file : {"model.safetensors", "optimizer-00000-of-00001.safetensors"}) {
    EXPECT_TRUE(read_text(whole / "step-00000012" / file) ==
                read_text(then / "step-00000012" / file));
  }
  // Resuming from an older checkpoint is refused and changes no file.
  const std::string metrics = read_text(first / "metrics.jsonl");
  expect_refusal(train(with(tiny(first), {{"resume", first / "step-00000005"}})), 2, "train",
                 {"step-00000012", "--out", "--resume"});
  EXPECT_EQ(read_text(first / "metrics.jsonl"), metrics);
  EXPECT_EQ(checkpoints(first).size(), 3u);
  // Resuming another run's checkpoint into this run's directory is refused, too.
  expect_refusal(train(with(tiny(whole), {{"resume", first / "step-00000005"}})), 2, "train",
                 {"step-00000012", "--out"});
  expect_success(train(with(tiny(first), {{"resume", first / "step-00000012"}, {"steps", "14"}})));
  EXPECT_EQ(loss_steps(first).size(), 14u);
}

TEST_F(Resume, NeverDoesNotWriteOverARun) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"resume", "never"}, {"steps", "3"}})));
  const std::string metrics = read_text(out / "metrics.jsonl");
  expect_refusal(train(with(tiny(out), {{"resume", "never"}})), 2, "train",
                 {"--out", "--resume never", "step-00000003"});
  EXPECT_EQ(read_text(out / "metrics.jsonl"), metrics);
}

TEST_F(Resume, OnlyWhatLeavesItTheSameRunMayChange) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"steps", "4"}})));
  const std::string metrics = read_text(out / "metrics.jsonl");
  for (const auto& [flag, value] : Flags{{"seed", "7"},
                                         {"lr", "0.01"},
                                         {"min-lr", "0"},
                                         {"warmup-steps", "4"},
                                         {"lr-decay-steps", "13"},
                                         {"schedule", "linear"},
                                         {"weight-decay", "0"},
                                         {"beta1", "0.8"},
                                         {"beta2", "0.9"},
                                         {"eps", "1e-06"},
                                         {"grad-clip", "0"},
                                         {"dtype", "bf16"},
                                         {"batch-size", "4"},
                                         {"total-batch-size", "32"},
                                         {"sampling", "sequential"},
                                         {"n-layer", "2"},
                                         {"n-head", "4"},
                                         {"n-embd", "32"},
                                         {"seq-len", "16"},
                                         {"bias", "true"},
                                         {"dropout", "0.1"},
                                         {"gelu", "tanh"},
                                         {"vocab-size", "200"}}) {
    SCOPED_TRACE(flag);
    expect_refusal(train(with(tiny(out), {{flag, value}})), 2, "train",
                   {"--" + flag, value == "true" ? "1" : value, "step-00000004"});
  }
  EXPECT_EQ(read_text(out / "metrics.jsonl"), metrics);
  // Giving the former value is no change, even if it was a default before.
  expect_success(train(with(tiny(out), {{"steps", "9"},
                                        {"eval-interval", "3"},
                                        {"eval-batches", "1"},
                                        {"log-interval", "2"},
                                        {"sample-interval", "4"},
                                        {"sample-tokens", "3"},
                                        {"checkpoint-interval", "2"},
                                        {"keep", "3"},
                                        {"max-skipped-steps", "5"},
                                        {"device", "cpu"},
                                        {"tf32", ""},
                                        {"deterministic", ""},
                                        {"recompute", "layernorm"},
                                        {"bias", "false"},
                                        {"gelu", "exact"}})));
  EXPECT_EQ(checkpoints(out),
            (std::vector<std::string>{"step-00000006", "step-00000008", "step-00000009"}));
}

// A trial that ended within its warm-up never used its decay.
TEST_F(Resume, OtherBitsAreAnnounced) {
  const fs::path out = scratch / "out";
  expect_success(train(with(tiny(out), {{"steps", "2"}, {"threads", "1"}})));
  const auto resumed = [&](const Flags& more) {
    const ProcessResult result = train(with(with(tiny(out), {{"threads", "1"}}), more));
    expect_success(result);
    return result.err;
  };
  EXPECT_EQ(resumed({{"steps", "3"}}).find("bit for bit"), std::string::npos);
  const std::string threads = resumed({{"steps", "4"}, {"threads", "2"}});
  expect_contains(threads, "not bit for bit");
  expect_contains(threads, "2 threads");
  const std::string logits = resumed({{"steps", "5"}, {"threads", "2"}, {"chunk-logits", "128"}});
  expect_contains(logits, "--chunk-logits");
  expect_contains(logits, "not bit for bit");
}

TEST_F(Resume, AShortTrialGoesOnWithAnyDecay) {
  const fs::path whole = scratch / "whole", parts = scratch / "parts";
  expect_success(train(tiny(whole)));
  Flags trial = with(tiny(parts), {{"steps", "2"}});
  trial.erase("lr-decay-steps");
  expect_success(train(trial));
  expect_success(train(tiny(parts)));
  EXPECT_EQ(loss_steps(parts).size(), 12u);
  EXPECT_TRUE(read_text(whole / "step-00000012/model.safetensors") ==
              read_text(parts / "step-00000012/model.safetensors"));
}

TEST_F(Resume, TheScheduleStaysWhereItWas) {
  const fs::path out = scratch / "out";
  Flags flags = tiny(out);
  flags.erase("lr-decay-steps");
  expect_success(train(with(flags, {{"steps", "5"}})));
  expect_refusal(train(flags), 2, "train", {"--lr-decay-steps 5", "12", "step-00000005"});
  expect_success(train(with(flags, {{"lr-decay-steps", "5"}})));
  EXPECT_EQ(last_checkpoint(out), "step-00000012");
  // If the rate does not decay, there is nothing to refuse.
  flags["out"] = scratch / "constant";
  flags["schedule"] = "constant";
  expect_success(train(with(flags, {{"steps", "5"}})));
  expect_success(train(flags));
}

TEST_F(Resume, TakesTheSizesOfAModelOpenedByInit) {
  const fs::path weights = scratch / "weights", whole = scratch / "whole",
                 parts = scratch / "parts";
  expect_success(train(tiny(weights)));
  const auto from = [&](const fs::path& out, const char* steps) {
    Flags flags = tiny(out);
    for (const char* size : {"n-layer", "n-head", "n-embd"}) flags.erase(size);
    flags["init"] = weights / "step-00000012";
    flags["steps"] = steps;
    return flags;
  };
  expect_success(train(from(whole, "8")));
  expect_success(train(from(parts, "4")));
  expect_success(train(from(parts, "8")));
  expect_same_run(whole, parts);
}

TEST_F(Resume, AfterASignalIsBitwise) {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
    SCOPED_TRACE(signal);
    const TempDir runs;
    const fs::path whole = runs / "whole", stopped = runs / "stopped";
    const Flags longer = {{"steps", "100000"}, {"lr-decay-steps", "100"}, {"dropout", "0.1"}};
    const ProcessResult result = signalled(with(tiny(stopped), longer), signal);
    expect_success(result);
    expect_contains(result.out, "stopped");
    const std::string at = last_checkpoint(stopped);
    ASSERT_FALSE(at.empty());
    const int64_t step = std::stoll(at.substr(5));
    EXPECT_EQ(loss_steps(stopped).back(), step);
    const Flags rest = with(longer, {{"steps", std::to_string(step + 6)}});
    expect_success(train(with(tiny(stopped), rest)));
    expect_success(train(with(tiny(whole), rest)));
    expect_same_run(whole, stopped);
  }
}

TEST_F(Resume, ASecondInterruptEndsAtOnce) {
  // One step takes most of a minute, and the first SIGINT waits for its end.
  Process process(train_command(with(tiny(scratch / "out"), {{"n-layer", "2"},
                                                             {"n-embd", "256"},
                                                             {"seq-len", "256"},
                                                             {"batch-size", "16"},
                                                             {"total-batch-size", "524288"},
                                                             {"eval-interval", "0"}})));
  while (process.running() && !fs::exists(scratch / "out/metrics.jsonl")) ::usleep(500);
  // What lies between that file and the step takes a few milliseconds.
  const double before = process.cpu_seconds();
  while (process.running() && process.cpu_seconds() < before + 0.5) ::usleep(500);
  process.send(SIGINT);
  ::usleep(20000);
  EXPECT_TRUE(process.running());
  process.send(SIGINT);
  const ProcessResult result = process.wait();
  EXPECT_EQ(result.signal, SIGINT) << result.exit_code << result.err;
  EXPECT_EQ(last_checkpoint(scratch / "out"), "");
}

}  // namespace
}  // namespace lathe::testing
