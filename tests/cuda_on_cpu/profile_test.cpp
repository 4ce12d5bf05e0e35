// --profile A:B as a profiler sees it: cudaProfilerStart and Stop around the steps, NVTX's ranges
// in between, no recording, and the same training.
#include <algorithm>
#include <sstream>

#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

using Lines = std::vector<std::string>;

class CudaProfile : public TrainTest {
 protected:
  static Flags flags(const std::filesystem::path& out, const Flags& more) {
    return with(with(tiny(out), {{"device", "cuda"}, {"dtype", "bf16"}, {"deterministic", ""}}),
                more);
  }
  // The lines that the profiler received during the run.
  Lines told(const Flags& flags, const std::string& recorder = LATHE_NVTX_RECORDER) {
    const std::filesystem::path log = scratch / "told";
    std::filesystem::remove(log);
    result = run(train_command(flags), {.environment = {"LATHE_CUDA_PROFILE=" + log.string(),
                                                        "NVTX_INJECTION64_PATH=" + recorder}});
    expect_success(result);
    Lines lines;
    if (!std::filesystem::exists(log)) return lines;
    std::istringstream text(read_text(log));
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
  }
  ProcessResult result;
};

// The name of the range that a line opens.
std::string name_in(const std::string& line) {
  return line.substr(5, line.find(" (") - 5);
}
// The names of the ranges directly within ranges named `outer`.
Lines children_of(const std::string& outer, const Lines& lines) {
  Lines children;
  int depth = 0, inside = -1;
  for (const std::string& line : lines) {
    if (line == "pop" && --depth == inside) inside = -1;
    if (!line.starts_with("push ")) continue;
    if (inside >= 0 && depth == inside + 1) children.push_back(name_in(line));
    if (inside < 0 && name_in(line) == outer) inside = depth;
    ++depth;
  }
  return children;
}
int64_t number_after(const std::string& line, const std::string& word) {
  return std::stoll(line.substr(line.find(word) + word.size()));
}

TEST_F(CudaProfile, BracketsItsStepsAndRecordsNone) {
  const Lines lines = told(flags(scratch / "out", {{"eval-interval", "0"}, {"profile", "5:7"}}));
  ASSERT_GE(lines.size(), 2u);
  EXPECT_TRUE(lines.front().starts_with("start ")) << lines.front();
  EXPECT_TRUE(lines.back().starts_with("stop ")) << lines.back();
  // Steps 0 and 1 run without recordings, 2 to 4 from recordings; 5 and 6 without.
  EXPECT_EQ(number_after(lines.front(), "graphs "), 3);
  EXPECT_EQ(number_after(lines.back(), "graphs "), 3);
  EXPECT_GT(number_after(lines.back(), "launches "), number_after(lines.front(), "launches ") + 40);
  EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                          [](const std::string& line) { return line.starts_with("st"); }),
            2);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), "push optimizer"), 2);
}

TEST_F(CudaProfile, NamesPhasesLayersOperationsAndParts) {
  const Lines lines =
      told(flags(scratch / "out",
                 {{"profile", "3:4"}, {"n-layer", "2"}, {"eval-interval", "0"}, {"bias", "1"}}));
  EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                          [](const std::string& line) { return line.starts_with("push "); }),
            std::count(lines.begin(), lines.end(), "pop"));
  EXPECT_EQ(children_of("forward", lines), (Lines{"embeddings", "layer 0", "layer 1", "layer 2"}));
  EXPECT_EQ(children_of("backward", lines), (Lines{"layer 2", "layer 1", "layer 0", "embeddings"}));
  const Lines layer = children_of("layer 1", lines);  // forward, then backward
  ASSERT_EQ(layer.size(), 14u);
  EXPECT_EQ(layer[1].substr(0, 17), "linear_forward 16");
  const Lines optimizer = children_of("optimizer", lines);
  ASSERT_FALSE(optimizer.empty());
  EXPECT_TRUE(optimizer.back().starts_with("adamw ")) << optimizer.back();

  const auto backward = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
    return line.starts_with("push linear_backward ");
  });
  ASSERT_NE(backward, lines.end());
  const Lines parts = children_of(name_in(*backward), lines);
  ASSERT_EQ(parts.size(), 6u);  // three per layer
  EXPECT_TRUE(parts[0].starts_with("weight gradient ")) << parts[0];
  EXPECT_TRUE(parts[1].starts_with("input gradient ")) << parts[1];
  EXPECT_TRUE(parts[2].starts_with("GELU backward ")) << parts[2];
}

// Everything that computes is in the range of an operation, and that in the range of a phase.
TEST_F(CudaProfile, EveryKernelLiesInAnOperation) {
  const Lines lines = told(flags(
      scratch / "out", {{"profile", "3:4"}, {"eval-interval", "0"}, {"total-batch-size", "32"}}));
  Lines open;
  int kernels = 0;
  for (const std::string& line : lines) {
    if (line.starts_with("push ")) open.push_back(name_in(line));
    if (line == "pop") open.pop_back();
    const bool kernel = line.find("_kernel") != std::string::npos;
    if (!line.starts_with("launch ") || !(kernel || line.ends_with("Matmul"))) continue;
    ++kernels;
    const bool first = line.find("begin_step_kernel") != std::string::npos;
    ASSERT_GE(open.size(), first ? 1u : 2u) << line;
    EXPECT_TRUE(first || open[0] == "forward" || open[0] == "backward" || open[0] == "optimizer")
        << line << " in " << open[0];
  }
  EXPECT_GT(kernels, 60);  // two micro-steps
  EXPECT_TRUE(open.empty());
}

// 2 x 8 rows, and a head of 16 channels: N C V and its three products' FLOPs, as text and payload.
TEST_F(CudaProfile, TellsWhatOperationsCost) {
  const Lines lines = told(flags(scratch / "out", {{"profile", "3:4"}, {"eval-interval", "0"}}));
  const auto head = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
    return line.starts_with("push linear_cross_entropy ");
  });
  ASSERT_NE(head, lines.end());
  int64_t rows = 0, channels = 0, vocabulary = 0;
  ASSERT_EQ(std::sscanf(head->c_str(), "push linear_cross_entropy %ldx%ldx%ld", &rows, &channels,
                        &vocabulary),
            3);
  const double flops = 6.0 * static_cast<double>(rows * channels * vocabulary);
  double told_flops = 0, told_bytes = 0;
  ASSERT_EQ(
      std::sscanf(head->substr(head->find('|')).c_str(), "| %lf %lf", &told_flops, &told_bytes), 2);
  EXPECT_EQ(told_flops, flops);
  EXPECT_GT(told_bytes, 4.0 * static_cast<double>(channels * vocabulary));
  double giga_flop = 0, giga_byte = 0;
  ASSERT_EQ(std::sscanf(head->substr(head->find('(')).c_str(), "(%lf GFLOP, %lf GB)", &giga_flop,
                        &giga_byte),
            2);
  EXPECT_NEAR(giga_flop * 1e9 / flops, 1, 1e-4);
  EXPECT_NEAR(giga_byte * 1e9 / told_bytes, 1, 1e-4);
}

TEST_F(CudaProfile, ChangesNoBit) {
  EXPECT_FALSE(told(flags(scratch / "profiled", {{"profile", "2:5"}})).empty());
  EXPECT_TRUE(told(flags(scratch / "plain", {})).empty());
  expect_same_run(scratch / "plain", scratch / "profiled");
  // Without a profiler no ranges are recorded.
  for (const std::string& line : told(flags(scratch / "alone", {{"profile", "2:5"}}), ""))
    EXPECT_FALSE(line.starts_with("push ")) << line;
  expect_same_run(scratch / "plain", scratch / "alone");
}

TEST_F(CudaProfile, SaysWhereThereIsNothingToProfile) {
  EXPECT_TRUE(
      told(with(flags(scratch / "cpu", {{"profile", "2:3"}}), {{"device", "cpu"}})).empty());
  expect_contains(result.err, "no profiler can watch the device cpu");
  told(flags(scratch / "out", {{"steps", "4"}}));
  EXPECT_TRUE(told(flags(scratch / "out", {{"profile", "2:9"}})).empty());
  expect_contains(result.err, "begins with step 4");
  expect_contains(result.err, "nothing is profiled");
}

}  // namespace
}  // namespace lathe::testing
