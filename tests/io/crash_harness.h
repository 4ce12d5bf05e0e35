// Runs a program under crash_preload.cpp, and returns what it did to a directory and how it ended.
//
//   CrashRun run{.command = {"build/train", "--out", dir, ...}, .directory = dir};
//   const CrashResult whole = run_with_crash(run);      // no crash: learns how many calls there
//   are for (run.at = 1; run.at <= whole.calls.size(); ++run.at) {
//     ... put the directory back as it was ...
//     EXPECT_TRUE(run_with_crash(run).killed);
//     ... what is in the directory now must be sound ...
//   }
// For a program under mpirun: command = {"mpirun", ..., "-x", "LD_PRELOAD", ...} and rank = 0. The
// variables are exported to mpirun itself, and the rank that they name is killed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace lathe {

// The calls in order, numbered as in crash_preload.cpp; the first is number 1.
struct CrashCall {
  std::string name;  // "open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", ...
  long bytes = 0;
  std::string path;  // relative to the directory, "." for itself
  std::string to;    // of a rename
};

struct CrashRun {
  std::vector<std::string> command;
  std::filesystem::path directory;
  size_t at = 0;                           // 0: no crash
  std::string when = "before";             // before, torn, after, error
  int error_number = 28;                   // for "error": ENOSPC
  int rank = -1;                           // the rank that counts under mpirun; -1: without mpirun
  std::vector<std::string> environment{};  // more NAME=VALUE
};

struct CrashResult {
  bool killed = false;  // by SIGKILL; under mpirun see exit_code instead
  int exit_code = -1;   // if no signal ended it
  std::string output;   // stdout and stderr together
  std::vector<CrashCall> calls;
};

CrashResult run_with_crash(const CrashRun& run);

// Checks what makes saves durable, over the calls of a whole run; returns one sentence for each
// breach. A file is fsynced after its last write, before it is renamed. A directory is fsynced
// after the last rename in it, before it is renamed itself, and nothing is written in it
// afterwards. A directory in which something is renamed is fsynced before the next rename in
// another directory or before the end. Only *.partial files are opened for writing or written,
// except for the names in `exempt`.
std::vector<std::string> durability_breaches(const std::vector<CrashCall>& calls,
                                             const std::vector<std::string>& exempt = {});

}  // namespace lathe
