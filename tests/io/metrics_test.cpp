#include "src/io/metrics.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <random>

#include "src/io/json.h"
#include "tests/io/scratch.h"

namespace lathe {
namespace {

StepMetrics at_step(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 4.0 / (1.0 + static_cast<double>(step));
  return metrics;
}

TEST(StepMetrics, AbsentMeansNotMeasured) {
  EXPECT_EQ(to_json(StepMetrics{}), R"({"step":0})");
  StepMetrics metrics;
  metrics.step = 12;
  metrics.val_loss = 2.5;
  metrics.tokens = int64_t{1} << 60;
  EXPECT_EQ(to_json(metrics), R"({"step":12,"val_loss":2.5,"tokens":1152921504606846976})");
}

TEST(StepMetrics, HasTheKeysThatArePromised) {
  StepMetrics metrics;
  metrics.loss = metrics.val_loss = metrics.lr = metrics.grad_norm = metrics.dt_ms = 1.0;
  metrics.forward_ms = metrics.backward_ms = metrics.optimizer_ms = metrics.comm_ms = 1.0;
  metrics.comm_exposed_ms = metrics.tokens_per_second = metrics.samples_per_second = 1.0;
  metrics.mfu = 0.5;
  metrics.tokens = 3;
  std::vector<std::string> keys;
  const nlohmann::ordered_json line = parse_ordered_json(to_json(metrics));
  for (const auto& [key, value] : line.items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"step", "loss", "val_loss", "lr", "grad_norm", "dt_ms",
                                            "forward_ms", "backward_ms", "optimizer_ms", "comm_ms",
                                            "comm_exposed_ms", "tokens_per_second",
                                            "samples_per_second", "mfu", "tokens"}));
}

TEST(StepMetrics, LossesReadBackBitByBit) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    if (i % 2) value = static_cast<float>(std::fmod(value, 100.0));
    StepMetrics metrics;
    metrics.loss = metrics.grad_norm = value;
    const nlohmann::json line = parse_json(to_json(metrics));
    EXPECT_EQ(std::bit_cast<uint64_t>(line["loss"].get<double>()), std::bit_cast<uint64_t>(value));
    EXPECT_EQ(line["grad_norm"], line["loss"]);
  }
}

TEST(StepMetrics, WhatIsNotFiniteIsNull) {
  StepMetrics metrics;
  metrics.loss = std::numeric_limits<double>::quiet_NaN();
  metrics.dt_ms = std::numeric_limits<double>::infinity();
  EXPECT_EQ(to_json(metrics), R"({"step":0,"loss":null,"dt_ms":null})");
}

std::string lines(int64_t first, int64_t last) {
  std::string text;
  for (int64_t step = first; step <= last; ++step) text += to_json(at_step(step)) + "\n";
  return text;
}

TEST(MetricsWriter, WritesEachLineAtOnce) {
  const Scratch scratch;
  MetricsWriter writer(scratch.path(), -1);
  for (int64_t step = 0; step < 3; ++step) {
    writer.write(at_step(step));
    EXPECT_EQ(slurp(writer.path()), lines(0, step));
  }
  writer.sync();
}

TEST(MetricsWriter, CutsWhatComesAfterTheStepOfTheResume) {
  const Scratch scratch;
  for (int64_t resume : {-1, 0, 3, 9, 10}) {
    spill(scratch / "metrics.jsonl", lines(0, 9));
    MetricsWriter writer(scratch.path(), resume);
    writer.write(at_step(resume + 1));
    EXPECT_EQ(slurp(writer.path()),
              lines(0, std::min<int64_t>(resume, 9)) + to_json(at_step(resume + 1)) + "\n");
  }
}

TEST(MetricsWriter, CutsATornLastLineWhereverItIsTorn) {
  const Scratch scratch;
  const std::string whole = lines(0, 2), torn = to_json(at_step(3));
  for (size_t n = 0; n <= torn.size(); ++n) {  // a line without its newline is torn, too
    spill(scratch / "metrics.jsonl", whole + torn.substr(0, n));
    const MetricsWriter writer(scratch.path(), 100);
    EXPECT_EQ(slurp(writer.path()), whole);
  }
  spill(scratch / "metrics.jsonl", whole + std::string(4096, '\0'));  // after a power failure
  const MetricsWriter writer(scratch.path(), 100);
  EXPECT_EQ(slurp(writer.path()), whole);
}

TEST(MetricsWriter, SetsAsideWhatItWouldNotKeep) {
  const Scratch scratch;
  for (const char* aside : {"metrics.jsonl.1", "metrics.jsonl.2"}) {
    spill(scratch / "metrics.jsonl", lines(0, 3));
    testing::internal::CaptureStderr();
    const MetricsWriter writer(scratch.path(), -1);
    EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), aside);
    EXPECT_EQ(slurp(scratch / "metrics.jsonl"), "");
    EXPECT_EQ(slurp(scratch / aside), lines(0, 3));
  }
}

TEST(MetricsWriter, WritesAFileAgainThatLostItsName) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "out");
  MetricsWriter writer(scratch / "out", -1);
  writer.write(at_step(0));
  std::filesystem::remove_all(scratch / "out");
  writer.write(at_step(1));
  testing::internal::CaptureStderr();
  writer.sync();
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "is written again");
  writer.write(at_step(2));
  writer.sync();
  EXPECT_EQ(slurp(writer.path()), lines(0, 2));
}

TEST(MetricsWriter, KeepsWhatHasTakenItsPlace) {
  const Scratch scratch;
  MetricsWriter writer(scratch.path(), -1);
  writer.write(at_step(0));
  std::filesystem::remove(writer.path());
  spill(writer.path(), "edited");
  testing::internal::CaptureStderr();
  writer.sync();
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "metrics.jsonl.1");
  EXPECT_EQ(slurp(writer.path()), lines(0, 0));
  EXPECT_EQ(slurp(scratch / "metrics.jsonl.1"), "edited");
}

TEST(MetricsWriter, LeavesAFileThatIsNotOurs) {
  const Scratch scratch;
  for (const char* foreign : {"one line", "{\"loss\":1}", "[1]", "{\"stop\""}) {
    spill(scratch / "metrics.jsonl", foreign);
    EXPECT_THROW(MetricsWriter(scratch.path(), -1), UserError) << foreign;
    EXPECT_EQ(slurp(scratch / "metrics.jsonl"), foreign);
  }
  for (const char* foreign : {"my notes\nmore\n", "{\"loss\":1}\n", "{\"step\":-1}\n", "[]\n",
                              "{\"step\":1.5}\n", "\n"}) {
    spill(scratch / "metrics.jsonl", lines(0, 1) + foreign);
    const std::string message =
        message_of<UserError>([&] { const MetricsWriter writer(scratch.path(), 100); });
    EXPECT_CONTAINS(message, "metrics.jsonl");
    EXPECT_CONTAINS(message, "line 3");
    EXPECT_EQ(slurp(scratch / "metrics.jsonl"), lines(0, 1) + foreign);
  }
}

TEST(MetricsWriter, SaysWhatIsWrongWithThePath) {
  const Scratch scratch;
  EXPECT_THROW(MetricsWriter(scratch / "none", -1), UserError);
  std::filesystem::create_directory(scratch / "metrics.jsonl");
  EXPECT_THROW(MetricsWriter(scratch.path(), -1), UserError);
}

TEST(MetricsWriter, AFullDiskIsACheckErrorAndTearsNoLine) {
  const Scratch scratch;
  MetricsWriter writer(scratch.path(), -1);
  writer.write(at_step(0));
  auto* const former_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit former{};
  ::getrlimit(RLIMIT_FSIZE, &former);
  const rlimit limit{lines(0, 0).size() + 5, former.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_THROW(writer.write(at_step(1)), CheckError);
  ::setrlimit(RLIMIT_FSIZE, &former);
  std::signal(SIGXFSZ, former_handler);
  EXPECT_EQ(slurp(writer.path()), lines(0, 0));
  writer.write(at_step(1));
  EXPECT_EQ(slurp(writer.path()), lines(0, 1));
}

}  // namespace
}  // namespace lathe
