#include "tests/train/process.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace lathe::testing {

namespace fs = std::filesystem;

namespace {

std::vector<std::string> environment_of(const ProcessOptions& options) {
  std::vector<std::string> environment = options.environment;  // first, so that it overrides
  for (char** variable = environ; *variable; ++variable) environment.emplace_back(*variable);
  return environment;
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (const std::string& text : strings) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

std::string slurp(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// In the child: redirects fd.
void redirect(int fd, Stream stream, const std::string& file) {
  if (stream == Stream::closed) {
    ::close(fd);
    return;
  }
  int target = -1, ends[2] = {-1, -1};
  if (stream == Stream::file) target = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (stream == Stream::full) target = ::open("/dev/full", O_WRONLY);
  if (stream == Stream::broken_pipe && ::pipe(ends) == 0) {
    ::signal(SIGPIPE, SIG_IGN);
    ::close(ends[0]);
    target = ends[1];
  }
  if (target < 0 || ::dup2(target, fd) < 0) ::_exit(126);
  ::close(target);
}

}  // namespace

Process::Process(const std::vector<std::string>& command, const ProcessOptions& options)
    : options_(options), started_(std::chrono::steady_clock::now()) {
  std::string pattern = (fs::temp_directory_path() / "lathe-process-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
  scratch_ = pattern;
  const std::vector<std::string> environment = environment_of(options);
  const std::vector<char*> arguments = pointers(command), variables = pointers(environment);
  const std::string out = scratch_ / "out", err = scratch_ / "err";
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("fork failed");
  if (pid_ > 0) return;
  ::dup2(::open("/dev/null", O_RDONLY), 0);
  redirect(1, options.out, out);
  redirect(2, options.err, err);
  if (options.in_closed) ::close(0);
  if (options.max_file_bytes > 0) {
    const rlimit limit{static_cast<rlim_t>(options.max_file_bytes),
                       static_cast<rlim_t>(options.max_file_bytes)};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);
  }
  if (!options.directory.empty() && ::chdir(options.directory.c_str()) != 0) ::_exit(126);
  environ = const_cast<char**>(variables.data());
  ::execvp(arguments[0], arguments.data());
  ::_exit(127);
}

Process::~Process() {
  if (running()) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

void Process::send(int signal) const {
  if (!reaped_) ::kill(pid_, signal);
}

bool Process::running() {
  if (reaped_) return false;
  rusage usage{};
  if (::wait4(pid_, &status_, WNOHANG, &usage) != pid_) return true;
  reaped_ = true;
  peak_rss_ = usage.ru_maxrss;
  return false;
}

double Process::cpu_seconds() const {
  clockid_t clock{};
  timespec time{};
  if (reaped_ || ::clock_getcpuclockid(pid_, &clock) != 0 || ::clock_gettime(clock, &time) != 0)
    return 0;
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string Process::output() const {
  return slurp(scratch_ / "out");
}

ProcessResult Process::wait() {
  while (running()) {
    if (std::chrono::steady_clock::now() - started_ > options_.deadline) send(SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ProcessResult result;
  if (WIFEXITED(status_)) result.exit_code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) result.signal = WTERMSIG(status_);
  result.peak_rss = peak_rss_;
  result.out = output();
  result.err = slurp(scratch_ / "err");
  return result;
}

ProcessResult run(const std::vector<std::string>& command, const ProcessOptions& options) {
  return Process(command, options).wait();
}

ProcessResult run_on_terminal(const std::vector<std::string>& command, int columns,
                              const ProcessOptions& options) {
  const std::vector<std::string> environment = environment_of(options);
  const std::vector<char*> arguments = pointers(command), variables = pointers(environment);
  const winsize size{.ws_row = 24, .ws_col = static_cast<unsigned short>(columns)};
  int terminal = -1;
  const pid_t pid = ::forkpty(&terminal, nullptr, nullptr, &size);
  if (pid < 0) throw std::runtime_error("forkpty failed");
  if (pid == 0) {
    environ = const_cast<char**>(variables.data());
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  ProcessResult result;
  char piece[4096];
  for (ssize_t n = 0; (n = ::read(terminal, piece, sizeof(piece))) > 0;) {  // EIO at the end
    result.out.append(piece, static_cast<size_t>(n));
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  ::close(terminal);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

}  // namespace lathe::testing
