// --offload: where masters and moments lie changes nothing, and a disk that fails costs nothing but
// the steps since the last checkpoint.
#include <csignal>
#include <fstream>

#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

class Offload : public TrainTest {
 protected:
  // 14 million parameters, most of them embeddings: four chunks of AdamW's states.
  Flags large(const fs::path& out) {
    return with(tiny(out), {{"n-embd", "200"},
                            {"n-head", "2"},
                            {"n-layer", "2"},
                            {"vocab-size", "65536"},
                            {"batch-size", "1"},
                            {"total-batch-size", "0"},
                            {"steps", "6"},
                            {"eval-interval", "0"},
                            {"checkpoint-interval", "2"},
                            {"dtype", "bf16"},
                            {"device", "cpu"}});
  }
  std::string in_file() { return "states=" + disk().string(); }
  fs::path disk() {
    fs::create_directories(scratch / "disk");
    return fs::canonical(scratch / "disk");
  }

  // Trains with a disk that fails.
  ProcessResult with_fault(const Flags& flags, const std::string& fault, int at) {
    ProcessOptions options;
    options.environment = {"LD_PRELOAD=" LATHE_FAULTY_DISK, "LATHE_DISK_DIR=" + disk().string(),
                           "LATHE_DISK_FAULT=" + fault, "LATHE_DISK_AT=" + std::to_string(at),
                           "ASAN_OPTIONS=verify_asan_link_order=0"};
    return run(train_command(flags), options);
  }
};

TEST_F(Offload, AnyPlaceOfTheStatesResumesAnyOther) {
  const Flags flags = {{"dtype", "bf16"},
                       {"stochastic-rounding", ""},
                       {"dropout", "0.1"},
                       {"eval-interval", "0"},
                       {"device", "cpu"}};
  expect_success(run(train_command(with(tiny(scratch / "whole"), flags))));
  const std::string places[] = {"states=cpu",    in_file(), "",
                                "states=pinned", in_file(), "states=cpu"};
  for (int i = 0; i < 6; ++i) {
    Flags now = with(flags, {{"steps", std::to_string(2 * (i + 1))}});
    if (!places[i].empty()) now["offload"] = places[i];
    const ProcessResult part = run(train_command(with(tiny(scratch / "parts"), now)));
    expect_success(part);
    EXPECT_EQ(part.err.find("not bit for bit"), std::string::npos) << part.err;
  }
  expect_same_run(scratch / "whole", scratch / "parts");
  EXPECT_TRUE(fs::is_empty(disk()));
}

// The last checkpoint is whole, and a run from it ends as one that was never disturbed.
TEST_F(Offload, ADiskThatFailsEndsTheRunWithOneSentence) {
  expect_success(run(train_command(large(scratch / "whole"))));
  struct Case {
    std::string fault;
    int at;
    std::string message;
  };
  // Of some 80 pieces of the states, a step writes all and reads 30, and a checkpoint reads some
  // 150.
  const Case cases[] = {
      {"no-space", 0, "bytes for optimizer states in DISK: No space left on device"},
      {"write-error", 230, "cannot write optimizer states to DISK: Input/output error"},
      {"write-full", 230, "cannot write optimizer states to DISK: No space left on device"},
      {"read-error", 330, "cannot read optimizer states from DISK: Input/output error"},
      {"read-end", 330, "the file has become shorter"},
      {"read-flip", 330, "they have changed since they were written"}};
  for (const auto& [fault, at, text] : cases) {
    SCOPED_TRACE(fault);
    const TempDir runs;
    const Flags flags = with(large(runs / "out"), {{"offload", in_file()}});
    const ProcessResult result = with_fault(flags, fault, at);
    std::string message = text;
    const size_t place = message.find("DISK");
    if (place != std::string::npos) message.replace(place, 4, disk().string());
    expect_refusal(result, 1, "train", {message});
    if (fault == "no-space") {
      EXPECT_EQ(last_checkpoint(runs / "out"), "");
      continue;
    }
    EXPECT_NE(last_checkpoint(runs / "out"), "") << result.err;
    EXPECT_NE(last_checkpoint(runs / "out"), "step-00000006") << result.err;
    if (fault.starts_with("write")) continue;
    expect_success(run(train_command(flags)));
    expect_same_run(scratch / "whole", runs / "out");
  }
  // A write that stops halfway goes on.
  const Flags flags = with(large(scratch / "part"), {{"offload", in_file()}});
  expect_success(with_fault(flags, "write-part", 230));
  expect_same_run(scratch / "whole", scratch / "part");
}

TEST_F(Offload, RefusesWhatItCannotDo) {
  const auto refused = [&](const std::string& offload, const std::vector<std::string>& parts) {
    expect_refusal(run(train_command(with(tiny(scratch / "out"), {{"offload", offload}}))), 2,
                   "train", parts);
  };
  refused("states=disk", {"--offload has 'states=disk'", "states=DIRECTORY"});
  refused("states=" + (scratch / "none").string(),
          {"cannot create a file in", "No such file or directory", "check the path"});
}

// A file system that cannot do what is faster.
TEST_F(Offload, APlainFileSystemWillDo) {
  const Flags flags = {{"dtype", "bf16"}, {"device", "cpu"}};
  expect_success(run(train_command(with(tiny(scratch / "whole"), flags))));
  expect_success(
      with_fault(with(tiny(scratch / "plain"), with(flags, {{"offload", in_file()}})), "plain", 0));
  expect_same_run(scratch / "whole", scratch / "plain");
  EXPECT_TRUE(fs::is_empty(disk()));
}

// The disk's file, its memory and the table of the plan.
TEST_F(Offload, ThePlanCountsTheFile) {
  Flags flags = with(large(""), {{"offload", in_file()}, {"dry-run", ""}});
  flags.erase("out");
  flags.erase("checkpoint-interval");
  const ProcessResult result = run(train_command(flags));
  expect_success(result);
  const size_t at = result.out.find("in a file\n");
  ASSERT_NE(at, std::string::npos) << result.out;
  EXPECT_NE(result.out.find("fp32 masters", at), std::string::npos) << result.out;
  EXPECT_TRUE(fs::is_empty(disk()));
}

}  // namespace
}  // namespace lathe::testing
