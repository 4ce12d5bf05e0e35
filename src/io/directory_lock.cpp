#include "src/io/directory_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include "kernels/device/error.h"
#include "kernels/device/standard_streams.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// "process 123 on host a", as the holder wrote it.
std::string holder_of(const fs::path& path) {
  constexpr uint64_t kLongest = 4096;
  try {
    std::string text = read_whole_file(path, kLongest);
    if (!text.empty() && text.back() == '\n') text.pop_back();
    if (text.starts_with("process ") && text.find('\n') == std::string::npos) return text;
  } catch (const std::runtime_error&) {
    // The holder has not written it yet, or has just removed it.
  }
  return "another process";
}

bool is_same_file(int fd, const fs::path& path) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

}  // namespace

DirectoryLock::DirectoryLock(const fs::path& directory, double patience_seconds)
    : path_(directory / "lock"), made_(make_if_absent(directory)) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::duration<double>(patience_seconds);
  bool reported = false;
  while (!try_lock()) {
    const std::string holder = holder_of(path_);
    if (Clock::now() >= until) {
      throw UserError("{} is in use by {}: wait until it ends, or name another directory",
                      directory.string(), holder);
    }
    if (!reported) {
      say(fmt::format("{} is in use by {}; waiting {:.0f} s for it to end", directory.string(),
                      holder, patience_seconds));
    }
    reported = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

bool DirectoryLock::make_if_absent(const fs::path& directory) {
  if (is_there(directory)) return false;
  make_directories(directory);
  return true;
}

// False if another process holds it.
bool DirectoryLock::try_lock() {
  for (;;) {
    FileHandle file(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
    if (!file) throw_io_error("open", path_, errno);
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return false;
      if (errno == EINTR) continue;
      say(fmt::format("{} cannot be locked ({}): make sure that no other process writes there",
                      path_.string(), std::generic_category().message(errno)));
      return true;
    }
    // The previous holder may have removed the file between our two calls. Then another process
    // would create and lock a new one.
    if (!is_same_file(file.get(), path_)) continue;
    file_ = std::move(file);
    write_holder();
    return true;
  }
}

void DirectoryLock::write_holder() const {
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) != 0) host[0] = '?';
  const std::string text = fmt::format("process {} on host {}\n", ::getpid(), host);
  // The text is optional: on a full disk the lock holds without it.
  if (::ftruncate(file_.get(), 0) != 0 || ::write(file_.get(), text.data(), text.size()) < 0)
    return;
}

DirectoryLock::~DirectoryLock() {
  if (file_ && is_same_file(file_.get(), path_)) ::unlink(path_.c_str());
  if (made_) ::rmdir(parent_of(path_).c_str());  // fails if it is not empty
}

}  // namespace lathe
