#include "tests/io/crash_harness.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>

extern char** environ;

namespace lathe {

namespace fs = std::filesystem;

namespace {

std::vector<std::string> environment_of(const CrashRun& run, const fs::path& log) {
  std::vector<std::string> environment;
  std::string asan;
  for (char** variable = environ; *variable; ++variable) {
    const std::string text = *variable;
    if (text.starts_with("LATHE_CRASH_") || text.starts_with("LD_PRELOAD=")) continue;
    if (text.starts_with("ASAN_OPTIONS=")) {
      asan = text.substr(13) + ":";
      continue;
    }
    environment.push_back(text);
  }
  // AddressSanitizer wants to be the first library, but this one only passes calls on to it.
  environment.push_back("ASAN_OPTIONS=" + asan + "verify_asan_link_order=0");
  environment.push_back("LD_PRELOAD=" LATHE_CRASH_PRELOAD);
  environment.push_back("LATHE_CRASH_DIR=" + run.directory.string());
  environment.push_back("LATHE_CRASH_LOG=" + log.string());
  if (run.at > 0) {
    environment.push_back("LATHE_CRASH_AT=" + std::to_string(run.at));
    environment.push_back("LATHE_CRASH_WHEN=" + run.when);
    environment.push_back("LATHE_CRASH_ERRNO=" + std::to_string(run.error_number));
  }
  if (run.rank >= 0) environment.push_back("LATHE_CRASH_RANK=" + std::to_string(run.rank));
  environment.insert(environment.end(), run.environment.begin(), run.environment.end());
  return environment;
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (const std::string& text : strings) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

// Runs the command with its output in a file; returns waitpid's status.
int run_command(const std::vector<std::string>& command,
                const std::vector<std::string>& environment, const fs::path& output) {
  const std::vector<char*> arguments = pointers(command);
  const std::vector<char*> variables = pointers(environment);
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int fd = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(fd, 1);
    ::dup2(fd, 2);
    environ = const_cast<char**>(variables.data());
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
  }
  return status;
}

std::vector<CrashCall> read_log(const fs::path& log) {
  std::vector<CrashCall> calls;
  std::ifstream file(log);
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    size_t number = 0;
    CrashCall call;
    fields >> number >> call.name >> call.bytes >> call.path >> call.to;
    if (number != calls.size() + 1) throw std::runtime_error("crash log out of order: " + line);
    calls.push_back(call);
  }
  return calls;
}

}  // namespace

CrashResult run_with_crash(const CrashRun& run) {
  std::string pattern = (fs::temp_directory_path() / "lathe-crash-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
  const fs::path scratch = pattern;
  const int status =
      run_command(run.command, environment_of(run, scratch / "log"), scratch / "output");
  CrashResult result;
  result.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  std::ostringstream output;
  output << std::ifstream(scratch / "output").rdbuf();
  result.output = output.str();
  result.calls = read_log(scratch / "log");
  fs::remove_all(scratch);
  return result;
}

namespace {

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

bool lies_in(const std::string& path, const std::string& directory) {
  return path.starts_with(directory + "/");
}

}  // namespace

std::vector<std::string> durability_breaches(const std::vector<CrashCall>& calls,
                                             const std::vector<std::string>& exempt) {
  std::vector<std::string> breaches;
  std::set<std::string> unsynced_files;    // written since their last fsync
  std::set<std::string> unsynced_renames;  // directories with a rename since their last fsync
  const auto breach = [&](size_t number, const std::string& what) {
    breaches.push_back("call " + std::to_string(number) + ": " + what);
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    const CrashCall& call = calls[i];
    const bool writes = call.name.find("write") != std::string::npos ||
                        call.name.find("truncate") != std::string::npos || call.name == "open";
    if (writes) {
      if (std::count(exempt.begin(), exempt.end(), call.path)) continue;
      const bool in_partial = call.path.find(".partial") != std::string::npos;
      if (!in_partial) breach(i + 1, call.path + " is written under its final name");
      if (!fs::path(call.path).filename().string().ends_with(".partial")) {
        breach(i + 1, call.path + " is not written beside its final name");
      }
      unsynced_files.insert(call.path);
    } else if (call.name == "fsync" || call.name == "fdatasync") {
      unsynced_files.erase(call.path);
      unsynced_renames.erase(call.path);
    } else if (call.name == "unlink") {
      unsynced_files.erase(call.path);
    } else if (call.name == "rename") {
      for (const std::string& file : unsynced_files) {
        if (file == call.path || lies_in(file, call.path)) {
          breach(i + 1, file + " is renamed before it was fsynced");
        }
      }
      for (const std::string& directory : unsynced_renames) {
        if (directory != parent_of(call.to)) {
          breach(i + 1, call.to + " is renamed before the directory " + directory +
                            " was fsynced after a rename in it");
        }
      }
      unsynced_renames.insert(parent_of(call.to));
    }
  }
  for (const std::string& file : unsynced_files) breaches.push_back(file + " is never fsynced");
  for (const std::string& directory : unsynced_renames) {
    breaches.push_back(directory + " is not fsynced after the last rename in it");
  }
  return breaches;
}

}  // namespace lathe
