// Several ranks under mpirun train the same run as one rank.
#include <signal.h>

#include <cmath>
#include <set>

#include "kernels/device/arena.h"
#include "src/io/json.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Ranks : public TrainTest {
 protected:
  // 20 steps of 96 sequences of 8 tokens, for any number of ranks. Every layer is a bucket, so that
  // there are several.
  static Flags job(const fs::path& out, int ranks, const Flags& more = {}) {
    const Flags sizes = {{"steps", "20"},
                         {"total-batch-size", "768"},
                         {"batch-size", "8"},
                         {"n-layer", "3"},
                         {"bucket-mb", "0"},
                         {"threads", "1"},
                         {"eval-interval", "10"},
                         {"grad-clip", "0.5"},
                         {"eval-batches", std::to_string(12 / ranks)}};
    return with(with(tiny(out), sizes), more);
  }
  ProcessResult train(int ranks, const Flags& flags) {
    return run(ranks_command(ranks, flags), kRanks);
  }

  // The losses of the evaluations, in order.
  static std::vector<double> validations(const fs::path& out) {
    std::vector<double> found;
    std::istringstream lines(read_text(out / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = parse_json(line);
      if (json.contains("val_loss")) found.push_back(json.at("val_loss").get<double>());
    }
    return found;
  }
  // The samples that a run printed, concatenated.
  static std::string samples(const std::string& output) {
    std::string found;
    for (size_t at = output.find("sample:"); at != std::string::npos;
         at = output.find("sample:", at + 1)) {
      found +=
          output.substr(at, std::min(output.find("\nstep ", at), output.find("\nranks", at)) - at);
    }
    return found;
  }

  static double rms_of(const std::vector<double>& a, const std::vector<double>& b) {
    EXPECT_EQ(a.size(), b.size());
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(sum / static_cast<double>(a.size()));
  }
};

TEST_F(Ranks, TheSameLossesAtEveryWorldSize) {
  expect_success(train(1, job(scratch / "1", 1)));
  const std::vector<double> one = losses(scratch / "1");
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back(), one.front());
  for (int ranks : {2, 3, 4}) {
    for (const char* sampling : {"random", "sequential"}) {
      SCOPED_TRACE(fmt::format("{} ranks, {}", ranks, sampling));
      const fs::path out = scratch / fmt::format("{}-{}", ranks, sampling);
      std::vector<double> alone = one, alone_validated = validations(scratch / "1");
      if (sampling == std::string("sequential")) {
        const fs::path whole = scratch / fmt::format("whole-{}", ranks);
        expect_success(train(1, job(whole, 1, {{"sampling", sampling}})));
        alone = losses(whole);
        alone_validated = validations(whole);
      }
      expect_success(train(ranks, job(out, ranks, {{"sampling", sampling}})));
      const std::vector<double> together = losses(out);
      ASSERT_EQ(together.size(), alone.size());
      for (size_t i = 0; i < alone.size(); ++i) EXPECT_NEAR(together[i], alone[i], 1e-5) << i;
      EXPECT_EQ(validation_steps(out), (std::vector<int64_t>{0, 10, 20}));
      const std::vector<double> validated = validations(out);
      ASSERT_EQ(validated.size(), alone_validated.size());
      for (size_t i = 0; i < validated.size(); ++i)
        EXPECT_NEAR(validated[i], alone_validated[i], 1e-5) << i;
    }
  }
}

// In bf16 with dropout, ranks may differ from one rank by twice as much as splitting a step into
// micro-steps differently changes the losses of one rank.
TEST_F(Ranks, InBf16AsFarApartAsAccumulationPutsThem) {
  const Flags bf16 = {{"dtype", "bf16"}, {"dropout", "0.1"}};
  expect_success(train(1, job(scratch / "1", 1, bf16)));
  expect_success(train(1, with(job(scratch / "cut", 1, bf16), {{"batch-size", "2"}})));
  const double plain = rms_of(losses(scratch / "1"), losses(scratch / "cut"));
  for (int ranks : {2, 4}) {
    const fs::path out = scratch / std::to_string(ranks);
    expect_success(train(ranks, job(out, ranks, bf16)));
    EXPECT_LE(rms_of(losses(out), losses(scratch / "1")), 2 * std::max(plain, 1e-4)) << ranks;
  }
}

// The files of optimizers hold the same moments at every stage, but stage 3 shares them otherwise.
void expect_same_files(const fs::path& a, const fs::path& b, bool optimizers) {
  for (const auto& entry : fs::directory_iterator(a)) {
    const std::string name = entry.path().filename().string();
    if (name != "model.safetensors" && !(optimizers && name.starts_with("optimizer-"))) continue;
    EXPECT_TRUE(read_text(entry.path()) == read_text(b / name)) << name;
  }
}

TEST_F(Ranks, ZeroStagesAreBitwiseEqual) {
  const std::vector<Flags> cases = {{},
                                    {{"dtype", "bf16"}, {"dropout", "0.2"}},
                                    {{"dtype", "bf16"}, {"stochastic-rounding", ""}},
                                    {{"dtype", "bf16"}, {"reduce-dtype", "bf16"}, {"bias", "true"}},
                                    {{"bucket-mb", "16"},
                                     {"replica-check-interval", "2"},
                                     {"sample-interval", "2"},
                                     {"sample-tokens", "40"},
                                     {"lr", "0.1"},
                                     {"warmup-steps", "0"}}};
  for (size_t i = 0; i < cases.size(); ++i) {
    for (int ranks : {2, 3, 4}) {
      if (ranks != static_cast<int>(2 + i % 3) && i > 1) continue;
      const TempDir runs;
      const Flags flags = with(cases[i], {{"steps", "6"}, {"reduce-each", "micro-step"}});
      const ProcessResult zero = train(ranks, job(runs / "0", ranks, flags));
      expect_success(zero);
      EXPECT_EQ(samples(zero.out).empty(), !flags.contains("sample-interval"));
      for (const char* stage : {"1", "2", "3"}) {
        SCOPED_TRACE(fmt::format("case {}, {} ranks, stage {}", i, ranks, stage));
        const ProcessResult other =
            train(ranks, job(runs / stage, ranks, with(flags, {{"zero-stage", stage}})));
        expect_success(other);
        EXPECT_EQ(samples(zero.out), samples(other.out));
        EXPECT_EQ(repeatable_metrics(runs / "0"), repeatable_metrics(runs / stage));
        expect_same_files(runs / "0" / "step-00000006", runs / stage / "step-00000006",
                          stage != std::string("3"));
      }
    }
  }
}

TEST_F(Ranks, ResumeAtTheSameSizeIsBitwise) {
  for (const char* stage : {"0", "1", "3"}) {
    for (const Flags& numbers : {Flags{{"dtype", "fp32"}}, Flags{{"dtype", "bf16"}},
                                 Flags{{"dtype", "bf16"}, {"stochastic-rounding", ""}}}) {
      SCOPED_TRACE(fmt::format("stage {}, {}{}", stage, numbers.at("dtype"),
                               numbers.size() > 1 ? ", rounded stochastically" : ""));
      const TempDir runs;
      const Flags flags = with(numbers, {{"zero-stage", stage}, {"dropout", "0.1"}});
      expect_success(train(3, job(runs / "whole", 3, flags)));
      expect_success(train(3, job(runs / "parts", 3, with(flags, {{"steps", "10"}}))));
      expect_success(train(3, job(runs / "parts", 3, flags)));
      EXPECT_EQ(repeatable_metrics(runs / "whole"), repeatable_metrics(runs / "parts"));
      expect_same_files(runs / "whole" / "step-00000020", runs / "parts" / "step-00000020", true);
    }
  }
}

// A run goes through all stages, from checkpoint to checkpoint, with the bits of one stage.
TEST_F(Ranks, AnyStageResumesAnyOther) {
  const Flags flags = {{"dtype", "bf16"},        {"stochastic-rounding", ""},
                       {"dropout", "0.1"},       {"eval-interval", "0"},
                       {"lr-decay-steps", "20"}, {"reduce-each", "micro-step"}};
  expect_success(train(2, job(scratch / "whole", 2, flags)));
  const std::vector<const char*> stages = {"0", "1", "2", "3", "0", "2", "1", "3", "1", "0"};
  for (size_t i = 0; i < stages.size(); ++i) {
    SCOPED_TRACE(fmt::format("stage {} from step {}", stages[i], 2 * i));
    const ProcessResult result = train(
        2, job(scratch / "parts", 2,
               with(flags, {{"zero-stage", stages[i]}, {"steps", std::to_string(2 * i + 2)}})));
    expect_success(result);
    EXPECT_EQ(result.err.find("not bit for bit"), std::string::npos) << result.err;
  }
  EXPECT_EQ(repeatable_metrics(scratch / "whole"), repeatable_metrics(scratch / "parts"));
  expect_same_files(scratch / "whole" / "step-00000020", scratch / "parts" / "step-00000020", true);
}

// What lies in the host's memory changes no bits.
TEST_F(Ranks, OffloadChangesNoBits) {
  const Flags flags = {{"dtype", "bf16"},       {"steps", "6"},
                       {"dropout", "0.1"},      {"n-layer", "6"},
                       {"recompute", "block"},  {"sample-interval", "3"},
                       {"sample-tokens", "20"}, {"reduce-each", "micro-step"}};
  for (const char* stage : {"0", "3"}) {
    SCOPED_TRACE(stage);
    const TempDir runs;
    const std::string all = "states=pinned,activations=pinned";
    const ProcessResult plain =
        train(2, job(runs / "plain", 2, with(flags, {{"zero-stage", stage}})));
    const ProcessResult offloaded = train(
        2,
        job(runs / "offloaded", 2,
            with(flags, {{"zero-stage", stage},
                         {"offload", stage == std::string("3") ? all + ",weights=pinned" : all}})));
    expect_success(plain);
    expect_success(offloaded);
    EXPECT_NE(offloaded.out.find("memory plan of the host"), std::string::npos) << offloaded.out;
    EXPECT_EQ(samples(plain.out), samples(offloaded.out));
    EXPECT_EQ(repeatable_metrics(runs / "plain"), repeatable_metrics(runs / "offloaded"));
    expect_same_files(runs / "plain" / "step-00000006", runs / "offloaded" / "step-00000006", true);
  }
}

// With several micro-steps stage 2 sums in another order than stage 1, and the run says so.
TEST_F(Ranks, ReducingMoreOftenIsSaid) {
  const fs::path out = scratch / "run";
  const Flags flags = {{"zero-stage", "1"}, {"eval-interval", "0"}, {"lr-decay-steps", "20"}};
  expect_success(train(2, job(out, 2, with(flags, {{"steps", "4"}}))));
  const ProcessResult second =
      train(2, job(out, 2, with(flags, {{"steps", "8"}, {"zero-stage", "2"}})));
  expect_success(second);
  EXPECT_NE(second.err.find("reduced gradients each step, but this run each micro-step: the run "
                            "continues, but not bit for bit"),
            std::string::npos)
      << second.err;
  expect_refusal(train(1, job(out, 1, with(flags, {{"zero-stage", "3"}, {"reduce-each", "step"}}))),
                 2, "train", {"--reduce-each step", "--zero-stage 3"});
}

// Models of 17 million parameters and of almost none. They evaluate and save.
Flags large(const fs::path& out, const char* stage) {
  return {{"n-layer", "6"},      {"n-head", "8"},
          {"n-embd", "512"},     {"vocab-size", "8192"},
          {"seq-len", "32"},     {"batch-size", "1"},
          {"steps", "2"},        {"bucket-mb", "1"},
          {"zero-stage", stage}, {"total-batch-size", "128"},
          {"device", "cpu"},     {"out", out}};
}

// What a rank uses, beyond what the program and MPI use, is what the plan says, at every stage.
TEST_F(Ranks, UseTheMemoryThatIsPlanned) {
  if (kSeparateAllocations) GTEST_SKIP() << "AddressSanitizer uses memory of its own";
  double before = HUGE_VAL;
  for (const char* stage : {"0", "1", "2", "3"}) {
    for (const char* dtype : {"fp32", "bf16"}) {
      SCOPED_TRACE(fmt::format("stage {}, {}", stage, dtype));
      const TempDir runs;
      const Flags flags = with(job("", 4, large(runs / "large", stage)), {{"dtype", dtype}});
      const ProcessResult none = train(4, with(flags, {{"n-embd", "8"}, {"out", runs / "small"}}));
      const ProcessResult run = train(4, flags);
      expect_success(none);
      expect_success(run);
      const double plan = planned_bytes(run.out) - planned_bytes(none.out);
      const double peak = 1024.0 * static_cast<double>(run.peak_rss - none.peak_rss);
      EXPECT_LE(peak, 1.03 * plan + (32 << 20)) << "planned " << plan;
      EXPECT_GE(peak, 0.9 * plan) << "planned " << plan;
      if (dtype != std::string("fp32")) continue;
      EXPECT_LT(plan, std::exchange(before, plan));
    }
  }
}

// What does not fit into a rank's memory at stage 0 fits at stage 3.
TEST_F(Ranks, Stage3FitsIntoLessMemory) {
  if (kSeparateAllocations) GTEST_SKIP() << "AddressSanitizer uses memory of its own";
  const auto limited = [&](const char* stage) {
    Command command = ranks_command(4, job("", 4, large(scratch / stage, stage)));
    const Command limit = {"bash", "-c", "ulimit -d 300000; exec \"$@\"", "bash"};
    command.insert(command.begin() + 3, limit.begin(), limit.end());
    return run(command, kRanks);
  };
  EXPECT_NE(limited("0").exit_code, 0);
  expect_success(limited("3"));
}

TEST_F(Ranks, ResumeAtAnotherSizeGoesOnAsOneRunWould) {
  expect_success(train(1, job(scratch / "whole", 1)));
  const std::vector<double> whole = losses(scratch / "whole");
  for (const auto& [before, after] : std::vector<std::pair<int, int>>{{1, 4}, {4, 2}, {3, 1}}) {
    for (const char* stage : {"0", "1"}) {
      SCOPED_TRACE(fmt::format("{} to {}, stage {}", before, after, stage));
      const TempDir runs;
      const fs::path out = runs / "run";
      const Flags flags = {{"zero-stage", stage}, {"eval-interval", "0"}};
      expect_success(train(before, job(out, before, with(flags, {{"steps", "10"}}))));
      const ProcessResult second = train(after, job(out, after, flags));
      expect_success(second);
      EXPECT_NE(second.err.find("not bit for bit"), std::string::npos) << second.err;
      const std::vector<double> parts = losses(out);
      ASSERT_EQ(parts.size(), whole.size());
      for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(parts[i], whole[i], 1e-5) << i;
    }
  }
}

TEST_F(Ranks, AnotherNumberOfTokensAStepIsRefused) {
  const Flags flags = with(job(scratch / "run", 2), {{"steps", "4"}, {"total-batch-size", "0"}});
  expect_success(train(2, flags));
  const ProcessResult refused = train(1, with(flags, {{"steps", "8"}}));
  expect_refusal(refused, 2, "train", {"--total-batch-size 128", "128 tokens a step"});
}

TEST_F(Ranks, ReadThroughMpiIoWhatTheyWouldMap) {
  const Flags few = {{"steps", "4"}, {"eval-interval", "2"}};
  expect_success(train(2, job(scratch / "mmap", 2, few)));
  expect_success(train(2, job(scratch / "mpi-io", 2, with(few, {{"reader", "mpi-io"}}))));
  expect_same_run(scratch / "mmap", scratch / "mpi-io");
  expect_refusal(train(1, job(scratch / "alone", 1, with(few, {{"reader", "mpi-io"}}))), 2, "train",
                 {"--reader mpi-io", "mpirun"});
}

// The trace of a step has the device and the communication of every rank, in the format of viewers.
TEST_F(Ranks, AStepIsTraced) {
  const fs::path trace = scratch / "trace.json";
  expect_success(train(
      2, job(scratch / "run", 2,
             {{"steps", "6"}, {"zero-stage", "1"}, {"eval-interval", "0"}, {"trace", trace}})));
  const auto events = parse_json(read_text(trace)).at("traceEvents");
  std::set<std::string> seen;
  for (const auto& event : events) {
    const auto place = fmt::format("{} {} {}", event.at("pid").get<int>(),
                                   event.at("tid").get<int>(), event.at("name").get<std::string>());
    seen.insert(place);
    if (event.at("ph") == "X") {
      EXPECT_GE(event.at("dur").get<double>(), 0) << place;
      EXPECT_LT(event.at("ts").get<double>(), 60e6) << place;
    }
  }
  for (int rank : {0, 1}) {
    for (const char* name : {"0 embedding_forward", "0 adamw", "0 wait: embeddings", "0 wait: norm",
                             "1 embeddings", "1 h.1.attn.c_proj", "1 h.2.mlp.c_proj to ln_f",
                             "1 loss", "1 norm", "0 process_name", "1 thread_name"}) {
      EXPECT_TRUE(seen.contains(fmt::format("{} {}", rank, name))) << rank << " " << name;
    }
  }
  // With one rank there are only operations, and a traced run has the results of an untraced one.
  expect_success(train(1, job(scratch / "one", 1, {{"steps", "6"}})));
  expect_success(train(1, job(scratch / "traced", 1, {{"steps", "6"}, {"trace", trace}})));
  expect_same_run(scratch / "one", scratch / "traced");
  // A run that is resumed with the same flags may have fewer than four steps left.
  const ProcessResult shorter =
      train(2, job(scratch / "short", 2, {{"steps", "3"}, {"trace", scratch / "t"}}));
  expect_success(shorter);
  EXPECT_NE(shorter.err.find("the fourth step is traced, and there are 3"), std::string::npos)
      << shorter.err;
  EXPECT_FALSE(fs::exists(scratch / "t"));
}

TEST_F(Ranks, OnlyOneSpeaks) {
  const ProcessResult result =
      train(4, job(scratch / "run", 4, {{"steps", "2"}, {"log-interval", "1"}}));
  expect_success(result);
  size_t lines = 0;
  for (size_t at = result.out.find("step 1/2 "); at != std::string::npos;
       at = result.out.find("step 1/2 ", at + 1)) {
    ++lines;
  }
  EXPECT_EQ(lines, 1u) << result.out;
  EXPECT_NE(result.out.find("x 4 ranks"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("ranks: busy"), std::string::npos) << result.out;
  // Communication times are measured and in metrics.jsonl.
  bool measured = false;
  std::istringstream metrics(read_text(scratch / "run" / "metrics.jsonl"));
  for (std::string line; std::getline(metrics, line);) {
    const auto json = parse_json(line);
    if (!json.contains("loss")) continue;
    EXPECT_GT(json.at("comm_ms").get<double>(), 0);
    EXPECT_GE(json.at("comm_exposed_ms").get<double>(), 0);
    measured = true;
  }
  EXPECT_TRUE(measured);
}

TEST_F(Ranks, AMistakeIsToldOnce) {
  const ProcessResult flag = train(4, job(scratch / "run", 4, {{"n-head", "5"}}));
  EXPECT_EQ(flag.exit_code, 2);
  size_t times = 0;
  for (size_t at = flag.err.find("train: "); at != std::string::npos;
       at = flag.err.find("train: ", at + 1)) {
    ++times;
  }
  EXPECT_EQ(times, 1u) << flag.err;
}

TEST_F(Ranks, LearningRatesGrowWithTheRanks) {
  for (const auto& [scale, factor] :
       std::vector<std::pair<const char*, double>>{{"none", 1}, {"linear", 4}, {"sqrt", 2}}) {
    const fs::path out = scratch / scale;
    expect_success(train(4, job(out, 4,
                                {{"steps", "1"},
                                 {"lr-scale", scale},
                                 {"lr", "0.0625"},
                                 {"warmup-steps", "0"},
                                 {"eval-interval", "0"}})));
    const auto line = parse_json(read_text(out / "metrics.jsonl"));
    EXPECT_EQ(line.at("lr").get<double>(), 0.0625 * factor) << scale;
    // config.toml has the scaled rates, and reading it does not scale them again.
    const fs::path again = scratch / (std::string(scale) + " again");
    expect_success(train(4, {{"config", out / "config.toml"}, {"out", again}}));
    EXPECT_EQ(losses(again), losses(out)) << scale;
    EXPECT_EQ(parse_json(read_text(again / "metrics.jsonl")).at("lr"), line.at("lr"));
  }
}

}  // namespace
}  // namespace lathe::testing
