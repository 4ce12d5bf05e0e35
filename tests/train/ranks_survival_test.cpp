// Runs with several ranks, which die, hang, disagree or receive a signal to stop.
#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "tests/io/crash_harness.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

class Survival : public TrainTest {
 protected:
  static Flags job(const fs::path& out, const Flags& more = {}) {
    return with(with(tiny(out), {{"n-layer", "2"},
                                 {"bucket-mb", "0"},
                                 {"threads", "1"},
                                 {"dropout", "0.1"},
                                 {"zero-stage", "1"},
                                 {"eval-batches", "1"}}),
                more);
  }
  // A run long enough that a signal arrives during it.
  static Flags endless(const fs::path& out, const Flags& more = {}) {
    return job(
        out, with({{"steps", "1000000"}, {"lr-decay-steps", "12"}, {"eval-interval", "0"}}, more));
  }
  static std::unique_ptr<Process> start(int ranks, const Flags& flags) {
    return std::make_unique<Process>(ranks_command(ranks, flags), kRanks);
  }
  static ProcessResult train(int ranks, const Flags& flags) {
    return run(ranks_command(ranks, flags), kRanks);
  }

  // The processes of the ranks, children of mpirun. Waits until there are `count`.
  static std::vector<pid_t> ranks_of(const Process& mpirun, size_t count) {
    const auto deadline = steady_clock::now() + std::chrono::seconds(20);
    std::vector<pid_t> found;
    while (found.size() < count && steady_clock::now() < deadline) {
      found.clear();
      std::ifstream children(fmt::format("/proc/{0}/task/{0}/children", mpirun.pid()));
      for (pid_t child = 0; children >> child;) {
        std::error_code gone;  // until its exec a child is still mpirun
        const fs::path program = fs::read_symlink(fmt::format("/proc/{}/exe", child), gone);
        if (program.filename() == "train") found.push_back(child);
      }
      ::usleep(500);
    }
    return found;
  }
  // Whether any of them runs. A zombie does not count.
  static bool any_lives(const std::vector<pid_t>& processes) {
    for (const pid_t process : processes) {
      std::string line;
      std::getline(std::ifstream(fmt::format("/proc/{}/stat", process)), line);
      const size_t name_end = line.rfind(')');  // then a blank and the state
      if (name_end != std::string::npos && line.substr(name_end, 3) != ") Z") return true;
    }
    return false;
  }
  // Waits until the first steps are in metrics.jsonl.
  static void wait_for_steps(Process& process, const fs::path& out) {
    const fs::path metrics = out / "metrics.jsonl";
    std::error_code absent;
    while (process.running() && (!fs::exists(metrics) || fs::file_size(metrics, absent) < 2000)) {
      ::usleep(500);
    }
  }
  void kill_and_resume(double moment, size_t victim, const Flags& flags);
  static double seconds_since(steady_clock::time_point begin) {
    return std::chrono::duration<double>(steady_clock::now() - begin).count();
  }
};

// Kills one of two ranks `moment` seconds after they started, resumes the run, and compares it with
// one that was not killed.
void Survival::kill_and_resume(double moment, size_t victim, const Flags& flags) {
  SCOPED_TRACE(fmt::format("rank {} after {:.3f} s", victim, moment));
  const fs::path out = flags.at("out");
  const auto mpirun = start(2, flags);
  const std::vector<pid_t> ranks = ranks_of(*mpirun, 2);
  ::usleep(static_cast<useconds_t>(1e6 * moment));
  const auto killed = steady_clock::now();
  if (victim < ranks.size() && mpirun->running()) ::kill(ranks[victim], SIGKILL);
  while (mpirun->running() && any_lives(ranks) && seconds_since(killed) < 60) ::usleep(500);
  EXPECT_LT(seconds_since(killed), 10);
  // If a rank dies in MPI_Init, Open MPI 4.1's mpirun sometimes deadlocks with itself (a mutex in
  // PMIx_server_finalize): all ranks are gone, but mpirun stays.
  while (mpirun->running() && seconds_since(killed) < 15) ::usleep(500);
  mpirun->send(SIGKILL);
  mpirun->wait();
  expect_success(train(2, flags));
  expect_same_run(scratch / "whole", out);
  fs::remove_all(out);
}

TEST_F(Survival, AKilledRankAtThirtyMoments) {
  constexpr int kJobs = 30, kAtATime = 3;  // jobs mostly wait
  const Flags saving = {{"checkpoint-interval", "3"}, {"keep", "2"}};
  const auto begin = steady_clock::now();
  expect_success(train(2, job(scratch / "whole", saving)));
  const double duration = seconds_since(begin);
  std::vector<std::jthread> workers;
  for (int worker = 0; worker < kAtATime; ++worker) {
    workers.emplace_back([this, worker, duration, &saving] {
      std::mt19937_64 random(static_cast<uint64_t>(77 + worker));
      for (int i = worker; i < kJobs; i += kAtATime) {
        // From the start of the ranks to beyond the end of the run.
        const double moment = duration * static_cast<double>(random() % 1100) / 1000;
        kill_and_resume(moment, random() % 2, job(scratch / fmt::format("out-{}", i), saving));
      }
    });
  }
}

TEST_F(Survival, ARankThatThrowsEndsAll) {
  // A token beyond the vocabulary. One of the ranks reads it first.
  const fs::path data_copy = scratch / "data";
  fs::copy(data(), data_copy);
  const fs::path shard = data_copy / "train_000000.bin";
  std::string bytes = read_text(shard);
  bytes[1024 + 2 * 1500] = bytes[1024 + 2 * 1500 + 1] = '\x7f';
  write_text(shard, bytes);
  const auto begin = steady_clock::now();
  const ProcessResult result = train(3, endless(scratch / "out", {{"data", data_copy}}));
  EXPECT_LT(seconds_since(begin), 10);
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_NE(result.err.find("train_000000.bin"), std::string::npos) << result.err;
}

TEST_F(Survival, ARankThatHangsIsNamed) {
  const auto mpirun = start(3, endless(scratch / "out", {{"comm-timeout", "2"}}));
  wait_for_steps(*mpirun, scratch / "out");
  const std::vector<pid_t> ranks = ranks_of(*mpirun, 3);
  ASSERT_EQ(ranks.size(), 3u);
  // mpirun started them in the order of their ranks.
  const auto begin = steady_clock::now();
  ::kill(ranks[1], SIGSTOP);
  const ProcessResult result = mpirun->wait();
  EXPECT_LT(seconds_since(begin), 12);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_NE(result.err.find("rank 1"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("2 s"), std::string::npos) << result.err;
  ::kill(ranks[1], SIGKILL);
}

TEST_F(Survival, ASignalToOneRankSavesAll) {
  for (int signal : {SIGTERM, SIGUSR1}) {
    const fs::path out = scratch / std::to_string(signal);
    const auto mpirun = start(3, endless(out));
    wait_for_steps(*mpirun, out);
    const std::vector<pid_t> ranks = ranks_of(*mpirun, 3);
    ASSERT_EQ(ranks.size(), 3u);
    ::kill(ranks[2], signal);
    const ProcessResult result = mpirun->wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("stopped; --resume auto continues from here"), std::string::npos);
    const std::string saved = last_checkpoint(out);
    ASSERT_FALSE(saved.empty());
    // Its state is that of an undisturbed run after the same steps.
    const std::string steps = std::to_string(std::stoll(saved.substr(5)));
    const fs::path whole = scratch / ("whole-" + std::to_string(signal));
    expect_success(train(3, with(endless(whole), {{"steps", steps}})));
    expect_same_run(whole, out);
  }
}

// mpirun forwards SIGUSR1 to the ranks at once.
TEST_F(Survival, SigusrToMpirunSaves) {
  const fs::path out = scratch / "out";
  const auto mpirun = start(2, endless(out));
  wait_for_steps(*mpirun, out);
  mpirun->send(SIGUSR1);
  EXPECT_EQ(mpirun->wait().exit_code, 0);
  EXPECT_FALSE(last_checkpoint(out).empty());
}

// On SIGTERM Open MPI waits for its odls_base_sigkill_timeout (a second by default), then forwards
// SIGTERM, waits as long again, and kills the ranks. Meanwhile it does not read their output.
TEST_F(Survival, SigtermToMpirunSavesWhereItIsGivenTime) {
  const fs::path out = scratch / "out";
  ProcessOptions patient = kRanks;
  patient.environment.push_back("OMPI_MCA_odls_base_sigkill_timeout=4");
  Process mpirun(ranks_command(2, endless(out)), patient);
  wait_for_steps(mpirun, out);
  mpirun.send(SIGTERM);
  EXPECT_NE(mpirun.wait().exit_code, 0);  // mpirun's own
  ASSERT_FALSE(last_checkpoint(out).empty());
  const std::string steps = std::to_string(std::stoll(last_checkpoint(out).substr(5)) + 2);
  expect_success(train(2, with(endless(out), {{"steps", steps}})));
}

// A rank without a batch still takes part in the step, and all save the steps done.
TEST_F(Survival, DataThatOneRankCannotReadCostNoStep) {
  const fs::path bad = scratch / "bad", out = scratch / "out";
  fs::copy(data(), bad);
  for (const auto& [split, at] : {std::pair<std::string, size_t>{"train", 2000}, {"val", 900}}) {
    std::string bytes = read_text(bad / (split + "_000000.bin"));
    bytes.replace(1024 + 2 * at, 2, "\xff\xff");
    write_text(bad / (split + "_000000.bin"), bytes);
  }
  const Flags flags = endless(out, {{"comm-timeout", "20"}});
  const ProcessResult result = train(2, with(flags, {{"data", bad}}));
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_NE(result.err.find("train_000000.bin holds token 65535"), std::string::npos) << result.err;
  const std::string last = last_checkpoint(out);
  ASSERT_FALSE(last.empty()) << result.err;
  EXPECT_EQ(loss_steps(out).back(), std::stoll(last.substr(5)));
  const Flags more = {{"steps", std::to_string(loss_steps(out).back() + 4)}};
  expect_success(train(2, with(flags, more)));
  expect_success(train(2, with(endless(scratch / "whole"), more)));
  expect_same_run(scratch / "whole", out);
  // The same in an evaluation, which comes first: no step is done yet, and no rank waits.
  for (const char* stage : {"1", "3"}) {
    const ProcessResult evaluation = train(2, with(flags, {{"data", bad},
                                                           {"out", scratch / "evaluation"},
                                                           {"n-layer", "3"},
                                                           {"zero-stage", stage},
                                                           {"eval-interval", "1"},
                                                           {"eval-batches", "0"}}));
    EXPECT_EQ(evaluation.exit_code, 2) << evaluation.err;
    EXPECT_NE(evaluation.err.find("val_000000.bin holds token 65535"), std::string::npos)
        << evaluation.err;
    EXPECT_EQ(evaluation.err.find("disagree"), std::string::npos) << evaluation.err;
  }
}

TEST_F(Survival, ADiskThatIsFullForOneRankLeavesNothingHalfDone) {
  const fs::path out = scratch / "out";
  fs::create_directory(out);
  CrashRun job_of_two{.command = ranks_command(2, job(out)),
                      .directory = out,
                      .rank = 1,
                      .environment = kRanks.environment};
  const std::vector<CrashCall> calls = run_with_crash(job_of_two).calls;
  const auto write = std::ranges::find_if(calls, [](const CrashCall& call) {
    return call.name == "write" && call.path.find("optimizer-00001") != std::string::npos;
  });
  ASSERT_NE(write, calls.end());
  fs::remove_all(out);
  fs::create_directory(out);
  job_of_two.at = static_cast<size_t>(write - calls.begin()) + 1;
  job_of_two.when = "error";
  const CrashResult result = run_with_crash(job_of_two);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_NE(result.output.find("rank 1: cannot write"), std::string::npos) << result.output;
  for (const fs::directory_entry& entry : fs::directory_iterator(out))
    EXPECT_FALSE(entry.path().filename().string().starts_with("step-")) << entry.path();
}

// The disk of one rank's optimizer states. What they saved before is whole.
TEST_F(Survival, OptimizerStatesThatOneRankCannotWriteEndTheJob) {
  const fs::path disk = fs::canonical(fs::path(scratch / "."));
  ProcessOptions options = kRanks;
  for (const std::string& variable :
       {std::string("LD_PRELOAD=" LATHE_FAULTY_DISK), "LATHE_DISK_DIR=" + disk.string(),
        std::string("LATHE_DISK_FAULT=write-error"), std::string("LATHE_DISK_AT=40"),
        std::string("LATHE_DISK_RANK=1"),
        std::string("ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0")})
    options.environment.push_back(variable);
  const Flags flags = endless(scratch / "out", {{"zero-stage", "1"},
                                                {"dtype", "bf16"},
                                                {"checkpoint-interval", "3"},
                                                {"offload", "states=" + disk.string()}});
  const ProcessResult result = run(ranks_command(2, flags), options);
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_NE(result.err.find("rank 1: cannot write optimizer states to"), std::string::npos)
      << result.err;
  const std::string last = last_checkpoint(scratch / "out");
  ASSERT_FALSE(last.empty()) << result.err;
  const Flags more = {{"steps", std::to_string(std::stoll(last.substr(5)) + 4)}};
  expect_success(train(2, with(flags, more)));
  expect_success(
      train(2, with(endless(scratch / "whole",
                            {{"zero-stage", "1"}, {"dtype", "bf16"}, {"checkpoint-interval", "3"}}),
                    more)));
  expect_same_run(scratch / "whole", scratch / "out");
}

// Flips a bit in every place of a process's memory that holds these bytes; returns their number.
int damage(pid_t process, const std::string& bytes) {
  std::fstream memory(fmt::format("/proc/{}/mem", process),
                      std::ios::binary | std::ios::in | std::ios::out);
  std::ifstream maps(fmt::format("/proc/{}/maps", process));
  int found = 0;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    uint64_t begin = 0, end = 0;
    std::string access;
    words >> std::hex >> begin;
    words.ignore() >> end >> access;
    if (!access.starts_with("rw-p") || end - begin > (uint64_t{1} << 30)) continue;
    std::string content(end - begin, '\0');
    memory.clear();
    memory.seekg(static_cast<std::streamoff>(begin));
    if (!memory.read(content.data(), static_cast<std::streamsize>(content.size()))) continue;
    for (size_t at = content.find(bytes); at != std::string::npos;
         at = content.find(bytes, at + 1)) {
      memory.seekp(static_cast<std::streamoff>(begin + at));
      memory.put(static_cast<char>(bytes[0] ^ 1)).flush();
      ++found;
    }
  }
  return found;
}

// A learning rate of 0 keeps the weights unchanged, so that some can be found in memory.
TEST_F(Survival, AReplicaThatChangesIsNamed) {
  for (const char* dtype : {"fp32", "bf16"}) {
    SCOPED_TRACE(dtype);
    const fs::path out = scratch / dtype;
    const auto mpirun = start(3, endless(out, {{"zero-stage", "0"},
                                               {"dtype", dtype},
                                               {"lr", "0"},
                                               {"min-lr", "0"},
                                               {"checkpoint-interval", "100"},
                                               {"keep", "1000"},
                                               {"replica-check-interval", "20"}}));
    while (mpirun->running() && last_checkpoint(out).empty()) ::usleep(500);
    const std::vector<pid_t> ranks = ranks_of(*mpirun, 3);
    ASSERT_EQ(ranks.size(), 3u);
    const std::string model = read_text(out / last_checkpoint(out) / "model.safetensors");
    uint64_t header = 0;  // its bytes; the embeddings follow it
    std::memcpy(&header, model.data(), sizeof(header));
    if (damage(ranks[2], model.substr(sizeof(header) + header, 64)) == 0) {
      mpirun->send(SIGKILL);
      GTEST_SKIP() << "the memory of another process cannot be changed here";
    }
    const ProcessResult result = mpirun->wait();
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find("the weights of rank 2 differ from rank 0's"), std::string::npos)
        << result.err;
  }
}

// Starts two programs in one job, as a faulty script might.
ProcessResult run_two(const Command& a, const Command& b) {
  Command command{LATHE_MPIEXEC, "-n", "1"};
  command.insert(command.end(), a.begin(), a.end());
  command.insert(command.end(), {":", "-n", "1"});
  command.insert(command.end(), b.begin(), b.end());
  return run(command, kRanks);
}

TEST_F(Survival, AWrongWorldIsRefused) {
  const Flags flags = job(scratch / "out");
  const auto expect_refused = [&](const Command& other, const std::string& what) {
    const ProcessResult result = run_two(train_command(flags), other);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(what + " of rank 1 differ from rank 0's"), std::string::npos)
        << result.err;
    EXPECT_FALSE(fs::exists(scratch / "out"));
  };
  expect_refused(train_command(with(flags, {{"lr", "0.5"}})), "the flags");

  const fs::path program = scratch / "train";
  write_text(program, read_text(LATHE_TRAIN) + "another build");
  fs::permissions(program, fs::perms::owner_all);
  Command other = train_command(flags);
  other[0] = program;
  expect_refused(other, "the program files");

  const fs::path whole = scratch / "whole", changed = scratch / "changed";
  fs::copy(data(), whole);
  fs::copy(data(), changed);
  std::string bytes = read_text(changed / "train_000000.bin");
  bytes[1024] = static_cast<char>(bytes[1024] ^ 1);
  write_text(changed / "train_000000.bin", bytes);
  // Both get --data . but run in different directories.
  const auto in = [&](const fs::path& directory) {
    Command command = train_command(with(flags, {{"data", "."}}));
    command.insert(command.begin(), {"/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", directory});
    return command;
  };
  const auto expect_other_data = [&] {
    const ProcessResult result = run_two(in(whole), in(changed));
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find("the data of rank 1 differ from rank 0's"), std::string::npos)
        << result.err;
  };
  expect_other_data();
  // A shard that is too large to be read completely at the start, and a truncated copy of it.
  std::string large = read_text(whole / "train_000000.bin");
  while (large.size() < 1000000) large += large.substr(1024);
  const auto tokens = static_cast<int32_t>((large.size() - 1024) / 2);
  std::memcpy(large.data() + 8, &tokens, sizeof(tokens));
  write_text(whole / "train_000000.bin", large);
  std::fill(large.begin() + 500000, large.end(), '\0');
  write_text(changed / "train_000000.bin", large);
  expect_other_data();
}

// This is reported before the first step, not at the first save.
TEST_F(Survival, AnOutOfItsOwnOnSomeRankIsRefused) {
  const auto in = [&](const char* directory) {
    fs::create_directory(scratch / directory);
    Command command = train_command(job("out"));
    command.insert(command.begin(),
                   {"/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", scratch / directory});
    return command;
  };
  const ProcessResult result = run_two(in("here"), in("there"));
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_NE(result.err.find("the files in --out of rank 1 differ from rank 0's"), std::string::npos)
      << result.err;
  EXPECT_EQ(result.out.find("step 1/"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace lathe::testing
