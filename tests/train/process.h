// Runs a program as a child process with given arguments, environment, signals and deadline, and
// returns its output and exit code.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace lathe::testing {

struct ProcessResult {
  int exit_code = -1;  // -1: a signal ended it
  int signal = 0;      // that ended it; SIGKILL if the deadline passed
  long peak_rss = 0;   // KiB
  std::string out, err;
};

// Where a standard stream leads: to a file that is read back (an empty one for an input), nowhere
// (closed), to a full disk, or into a pipe that nobody reads, with SIGPIPE ignored.
enum class Stream { file, closed, full, broken_pipe };

struct ProcessOptions {
  std::vector<std::string> environment{};  // NAME=VALUE, over the caller's
  std::filesystem::path directory{};       // to run in; empty: the caller's
  long max_file_bytes = 0;                 // writing more fails (EFBIG); 0: no limit
  std::chrono::seconds deadline{120};
  Stream out = Stream::file, err = Stream::file;
  bool in_closed = false;
};

// A running program. It writes its output to files, so it never waits for a reader.
class Process {
 public:
  explicit Process(const std::vector<std::string>& command, const ProcessOptions& options = {});
  ~Process();  // kills it if it still runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) const;
  pid_t pid() const { return pid_; }
  bool running();
  // CPU time that all its threads have taken so far; 0 if it has ended.
  double cpu_seconds() const;
  // Its output on stdout so far.
  std::string output() const;
  ProcessResult wait();

 private:
  ProcessOptions options_;
  std::filesystem::path scratch_;
  pid_t pid_ = -1;
  bool reaped_ = false;
  int status_ = 0;
  long peak_rss_ = 0;
  std::chrono::steady_clock::time_point started_;
};

ProcessResult run(const std::vector<std::string>& command, const ProcessOptions& options = {});

// The same on a terminal of `columns` columns. `out` is all that the terminal received, \n as \r\n.
ProcessResult run_on_terminal(const std::vector<std::string>& command, int columns,
                              const ProcessOptions& options = {});

}  // namespace lathe::testing
