// The programs on the CUDA device: they train as on the CPU, and either device resumes the other's
// checkpoints.
#include <cmath>
#include <sstream>

#include "src/io/json.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Cuda : public TrainTest {
 protected:
  static ProcessResult train(const Flags& flags) { return run(train_command(flags)); }
  static Flags on(const std::string& device, const Flags& flags) {
    return with(flags, {{"device", device}});
  }
};

double rms_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double squares = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares / static_cast<double>(std::max<size_t>(a.size(), 1)));
}

// Fifty steps from the same weights, windows and dropout masks. fp32 on the CPU is the reference;
// in bf16 the GPU's error may be twice the CPU's.
TEST_F(Cuda, FollowsTheLossCurveOfTheCpu) {
  const Flags more = {{"steps", "50"},           {"lr-decay-steps", "50"}, {"dropout", "0.2"},
                      {"n-layer", "2"},          {"n-embd", "32"},         {"seq-len", "17"},
                      {"eval-interval", "0"},    {"bias", "true"},         {"gelu", "tanh"},
                      {"total-batch-size", "68"}};
  std::map<std::string, std::vector<double>> curves;
  for (const char* device : {"cpu", "cuda"}) {
    for (const char* dtype : {"fp32", "bf16"}) {
      const std::string name = std::string(device) + "-" + dtype;
      expect_success(train(with(on(device, tiny(scratch / name)), with(more, {{"dtype", dtype}}))));
      curves[name] = losses(scratch / name);
      ASSERT_EQ(curves[name].size(), 50u);
    }
  }
  const std::vector<double>& reference = curves["cpu-fp32"];
  EXPECT_LT(reference.back(), reference.front() - 0.2);
  const double cpu = rms_difference(curves["cpu-bf16"], reference);
  EXPECT_GT(cpu, 0);
  EXPECT_LE(rms_difference(curves["cuda-bf16"], reference), 2 * cpu);
  // In fp32 they differ only by the rounding of sums in different orders.
  EXPECT_LE(rms_difference(curves["cuda-fp32"], reference), cpu / 10);
}

// Plans chosen by timing come from the checkpoint.
TEST_F(Cuda, ResumesBitForBit) {
  for (const Flags& more :
       {Flags{{"dtype", "bf16"}, {"dropout", "0.3"}, {"total-batch-size", "32"}},
        Flags{{"dtype", "fp32"}, {"deterministic", ""}}}) {
    const TempDir runs;
    const Flags flags = with(on("cuda", tiny(runs / "parts")), more);
    expect_success(train(with(flags, {{"steps", "4"}, {"checkpoint-interval", "4"}})));
    // Run the rest twice from the same checkpoint.
    fs::copy(runs / "parts", runs / "again", fs::copy_options::recursive);
    expect_success(train(flags));
    expect_success(train(with(flags, {{"out", runs / "again"}})));
    expect_same_run(runs / "parts", runs / "again");
  }
}

TEST_F(Cuda, DeterministicRunsAreTheSameInOneGoAndInTwo) {
  const Flags more = {{"dtype", "bf16"}, {"dropout", "0.3"}, {"deterministic", ""}};
  expect_success(train(with(on("cuda", tiny(scratch / "whole")), more)));
  expect_success(train(with(on("cuda", tiny(scratch / "parts")), with(more, {{"steps", "4"}}))));
  expect_success(train(with(on("cuda", tiny(scratch / "parts")), more)));
  expect_same_run(scratch / "whole", scratch / "parts");
}

TEST_F(Cuda, ContinuesOnTheOtherDevice) {
  const Flags flags = with(tiny(scratch / "out"), {{"dtype", "bf16"}});
  expect_success(train(with(on("cuda", flags), {{"steps", "4"}})));
  const ProcessResult on_cpu = train(with(on("cpu", flags), {{"steps", "8"}}));
  expect_success(on_cpu);
  expect_contains(on_cpu.err, "not bit for bit");
  expect_success(train(on("cuda", flags)));
  EXPECT_EQ(losses(scratch / "out").size(), 12u);
}

TEST_F(Cuda, EveryLevelOfRecomputationGivesTheSameBits) {
  const Flags more = {{"dtype", "bf16"}, {"deterministic", ""}, {"n-layer", "2"}};
  expect_success(train(with(on("cuda", tiny(scratch / "none")), more)));
  for (const char* level : {"gelu", "layernorm", "block"}) {
    expect_success(
        train(with(on("cuda", tiny(scratch / level)), with(more, {{"recompute", level}}))));
    expect_same_run(scratch / "none", scratch / level);
  }
}

// A trace has each operation with its cost. The parts of an operation with several kernels fill its
// time without gaps.
TEST_F(Cuda, ATraceTellsPartsAndCosts) {
  const std::filesystem::path file = scratch / "trace.json";
  expect_success(train(with(on("cuda", tiny(scratch / "out")),
                            {{"dtype", "bf16"}, {"bias", "1"}, {"trace", file}})));
  const auto trace = parse_json(read_text(file));
  EXPECT_EQ(trace.at("otherData").at("dtype"), "bf16");
  EXPECT_EQ(trace.at("otherData").at("step"), 4);
  EXPECT_NE(trace.at("otherData").at("device").get<std::string>(), "");

  const double kRounding = 0.0021;  // microseconds: both ends are rounded to a nanosecond
  std::map<std::string, std::vector<std::string>> parts_of;
  nlohmann::json operation;
  double end = 0, flops = 0;
  const auto finish = [&] {  // the previous event was the last part of `operation`
    if (operation.is_null() || end == 0) return;
    EXPECT_NEAR(end, operation.at("ts").get<double>() + operation.at("dur").get<double>(),
                kRounding);
    const double whole = operation.at("args").at("flops").get<double>();
    EXPECT_GE(flops, whole);  // the head's products include the vocabulary's padding
    if (operation.at("name") == "linear_backward") {
      EXPECT_EQ(flops, whole);
    }
  };
  for (const auto& event : trace.at("traceEvents")) {
    const std::string cat = event.value("cat", ""), name = event.at("name");
    if (cat != "operation" && cat != "part") continue;
    EXPECT_GT(event.at("args").at("bytes").get<double>(), 0) << name;
    if (cat == "operation") {
      finish();
      operation = event, end = flops = 0;
      continue;
    }
    const double from = end == 0 ? operation.at("ts").get<double>() : end;
    EXPECT_NEAR(event.at("ts").get<double>(), from, kRounding) << name;
    end = event.at("ts").get<double>() + event.at("dur").get<double>();
    flops += event.at("args").at("flops").get<double>();
    parts_of[operation.at("name")].push_back(name);
  }
  finish();
  using Names = std::vector<std::string>;
  EXPECT_EQ(parts_of.at("linear_cross_entropy"),
            (Names{"logits", "softmax rows", "dx", "dwte", "sum of losses"}));
  EXPECT_EQ(parts_of.at("linear_forward"), (Names{"product", "GELU"}));  // one layer
  EXPECT_EQ(parts_of.at("linear_backward"),
            (Names{"weight gradient", "input gradient", "GELU backward", "weight gradient",
                   "input gradient", "weight gradient", "input gradient", "weight gradient",
                   "input gradient"}));
  EXPECT_EQ(parts_of.size(), 3u);
}

// Two ranks share a GPU and communicate through the host. Losses are those of one rank; bits are
// those of the other ZeRO stage and of a run in two parts.
TEST_F(Cuda, RanksThatShareAGpuAreOneRun) {
  if (std::string(LATHE_MPIEXEC).empty()) GTEST_SKIP() << "this build has no MPI";
  ProcessOptions options = kRanks;
  options.environment.push_back("LATHE_CUDA_PATIENCE=60");
  const auto job = [&](int ranks, const std::string& out, const Flags& more) {
    const Flags flags = {{"total-batch-size", "32"}, {"bucket-mb", "0"}, {"comm", "mpi"},
                         {"deterministic", ""},      {"steps", "6"},     {"eval-batches", "2"}};
    expect_success(run(
        ranks_command(ranks, with(with(on("cuda", tiny(scratch / out)), flags), more)), options));
  };
  job(1, "one", {});
  job(2, "zero", {});
  job(2, "sharded", {{"zero-stage", "1"}});
  job(2, "saving", {{"zero-stage", "1"}, {"checkpoint-interval", "2"}});
  job(2, "traced", {{"zero-stage", "1"}, {"trace", scratch / "trace.json"}});
  job(2, "parts", {{"zero-stage", "1"}, {"steps", "4"}});
  job(2, "parts", {{"zero-stage", "1"}});
  EXPECT_LT(rms_difference(losses(scratch / "one"), losses(scratch / "zero")), 1e-5);
  expect_same_run(scratch / "zero", scratch / "sharded");
  expect_same_run(scratch / "sharded", scratch / "saving");
  expect_same_run(scratch / "sharded", scratch / "traced");
  const std::string trace = read_text(scratch / "trace.json");
  for (const char* row :
       {R"("name":"adamw","ph":"X","pid":1,"tid":0)", R"("name":"norm","ph":"X","pid":1,"tid":1)",
        R"("name":"wait: norm","ph":"X","pid":0,"tid":0)"})
    EXPECT_NE(trace.find(row), std::string::npos) << row << " in\n" << trace;
  expect_same_run(scratch / "sharded", scratch / "parts");
}

// Each rank would find a different plan fastest. All use rank 0's, which the checkpoint keeps, so a
// resumed run has the bits of an uninterrupted one.
TEST_F(Cuda, RanksShareTheirPlans) {
  if (std::string(LATHE_MPIEXEC).empty()) GTEST_SKIP() << "this build has no MPI";
  ProcessOptions options = kRanks;
  options.environment.push_back("LATHE_CUDA_PATIENCE=60");
  options.environment.push_back("LATHE_CUBLASLT_FAST=2");
  const Flags flags = with(on("cuda", tiny(scratch / "whole")), {{"dtype", "bf16"},
                                                                 {"total-batch-size", "64"},
                                                                 {"batch-size", "2"},
                                                                 {"comm", "mpi"},
                                                                 {"steps", "6"},
                                                                 {"eval-interval", "2"},
                                                                 {"checkpoint-interval", "4"},
                                                                 {"keep", "3"}});
  expect_success(
      run(ranks_command(2, with(flags, {{"tuning-log", scratch / "tuning.tsv"}})), options));
  fs::copy(scratch / "whole", scratch / "parts", fs::copy_options::recursive);
  fs::remove_all(scratch / "parts" / "step-00000006");
  fs::remove(scratch / "parts" / "metrics.jsonl");
  expect_success(run(ranks_command(2, with(flags, {{"out", scratch / "parts"}})), options));
  const auto weights = [&](const std::string& out) {
    return read_text(scratch / out / "step-00000006" / "model.safetensors");
  };
  EXPECT_TRUE(weights("whole") == weights("parts"));
  const std::string log = read_text(scratch / "tuning.tsv");
  EXPECT_TRUE(log.starts_with("shape\tcandidate\t")) << log;
  // Rank 0's plans, the second algorithm, for the first micro-step and for those that accumulate.
  expect_contains(log, " added\t");
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const bool chosen = line.ends_with("\tchosen") && !line.starts_with("shape");
    EXPECT_TRUE(!chosen || line.find("\t2\t0\t0\t1\t") != std::string::npos) << line;
  }
}

// If memory is short, fewer logits are computed at once: the plan fits, or it is the smallest.
TEST_F(Cuda, AsManyLogitsAtOnceAsMemoryAllows) {
  const auto planned = [&](const std::string& memory, const Flags& more) {
    ProcessOptions options;
    options.environment = {"LATHE_CUDA_MEMORY=" + memory};
    const Flags flags = {{"model", "gpt2-124m"}, {"batch-size", "16"}, {"seq-len", "1024"},
                         {"dtype", "bf16"},      {"device", "cuda"},   {"dry-run", ""}};
    const ProcessResult result = run(train_command(with(flags, more)), options);
    expect_success(result);
    if (result.out.find("CUDA on the CPU") == std::string::npos) return int64_t{-1};
    const size_t at = result.out.find("chunk-logits=");
    return at == std::string::npos ? int64_t{0} : int64_t{std::stoll(result.out.substr(at + 13))};
  };
  if (planned("80000000000", {}) < 0) GTEST_SKIP() << "only CUDA on the CPU can have less memory";
  EXPECT_EQ(planned("80000000000", {}), int64_t{1} << 30);
  EXPECT_EQ(planned("9000000000", {}), int64_t{1} << 27);
  EXPECT_EQ(planned("2000000000", {}), int64_t{1} << 26);
  EXPECT_EQ(planned("9000000000", {{"chunk-logits", "1000000"}}), 1000000);
}

// What does not fit into the GPU's memory fits if masters, moments, the inputs of layers and the
// weights lie in the host's, even on one GPU, and trains the same.
TEST_F(Cuda, OffloadFitsIntoLessMemory) {
  const Flags flags = on("cuda", with(tiny(scratch / "out"), {{"dtype", "bf16"},
                                                              {"recompute", "block"},
                                                              {"n-layer", "20"},
                                                              {"n-head", "2"},
                                                              {"n-embd", "128"},
                                                              {"batch-size", "1"},
                                                              {"total-batch-size", "0"},
                                                              {"chunk-logits", "4096"},
                                                              {"deterministic", ""},
                                                              {"steps", "2"}}));
  const ProcessResult plain = train(flags);
  expect_success(plain);
  if (plain.out.find("CUDA on the CPU") == std::string::npos)
    GTEST_SKIP() << "only CUDA on the CPU can have less memory";
  constexpr size_t kMemory = size_t{80} << 20;
  EXPECT_GT(planned_bytes(plain.out), 1.2 * kMemory) << plain.out;
  ProcessOptions options;
  options.environment = {fmt::format("LATHE_CUDA_MEMORY={}", kMemory)};
  const ProcessResult refused =
      run(train_command(with(flags, {{"out", scratch / "refused"}})), options);
  EXPECT_EQ(refused.exit_code, 2);
  expect_contains(refused.err, "of GPU memory are needed");
  const ProcessResult offloaded = run(
      train_command(with(flags, {{"out", scratch / "offloaded"},
                                 {"zero-stage", "3"},
                                 {"offload", "states=pinned,activations=pinned,weights=pinned"}})),
      options);
  expect_success(offloaded);
  expect_same_run(scratch / "out", scratch / "offloaded");
}

TEST_F(Cuda, SamplesTheSameTextTwice) {
  expect_success(train(
      with(on("cuda", tiny(scratch / "out")), {{"sample-interval", "6"}, {"sample-tokens", "5"}})));
  const Flags sample = {{"checkpoint", scratch / "out" / "step-00000012"},
                        {"prompt", "The"},
                        {"tokens", "7"},
                        {"device", "cuda"}};
  const ProcessResult first = run(sample_command(sample)), second = run(sample_command(sample));
  expect_success(first);
  EXPECT_FALSE(first.out.empty());
  EXPECT_EQ(first.out, second.out);
}

}  // namespace
}  // namespace lathe::testing
