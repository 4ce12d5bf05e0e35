// A library for LD_PRELOAD that numbers the calls by which a program changes a directory, and kills
// the program, or fails the call, at a given number. So a test can crash a save at every step.
//
//   LATHE_CRASH_DIR    calls on paths in or below this directory count; without it nothing is done
//   LATHE_CRASH_LOG    a file (outside LATHE_CRASH_DIR) that gets one line a call:
//                      "<number> <call> <bytes> <path relative to the directory> [<new path>]"
//   LATHE_CRASH_AT     the number, from 1, of the call at which something happens
//   LATHE_CRASH_WHEN   before (default): SIGKILL instead of the call
//                      torn:   SIGKILL after half of the bytes, for a write; before, for others
//                      after:  SIGKILL right after the call
//                      error:  the call fails with errno LATHE_CRASH_ERRNO (a number; default
//                              ENOSPC), and so do all later calls but unlink and rmdir
//   LATHE_CRASH_RANK   count only in the process with this OMPI_COMM_WORLD_RANK
//
// Counted: write pwrite writev pwritev, fsync fdatasync, rename renameat renameat2, unlink unlinkat
// rmdir remove, ftruncate truncate, mkdir mkdirat, link symlink, and open openat creat if they may
// create or truncate. Not counted: stdio and mmap, which cannot be intercepted here; lathe's files
// use the system calls. Numbers are per process, and follow the order of the calls even with
// threads.
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

namespace {

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

enum class When { before, torn, after, error };

struct Plan {
  char directory[PATH_MAX] = "";
  int log = -1;
  long at = 0;
  When when = When::before;
  int error_number = ENOSPC;
  long calls = 0;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

  Plan() {
    const char* wanted_rank = getenv("LATHE_CRASH_RANK");
    const char* rank = getenv("OMPI_COMM_WORLD_RANK");
    if (wanted_rank && (!rank || strcmp(wanted_rank, rank) != 0)) return;
    const char* dir = getenv("LATHE_CRASH_DIR");
    if (!dir || !realpath(dir, directory)) {
      directory[0] = '\0';
      return;
    }
    if (const char* name = getenv("LATHE_CRASH_LOG")) {
      log = real<int(const char*, int, ...)>("open")(
          name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    }
    if (const char* number = getenv("LATHE_CRASH_AT")) at = atol(number);
    if (const char* number = getenv("LATHE_CRASH_ERRNO")) error_number = atoi(number);
    const char* word = getenv("LATHE_CRASH_WHEN");
    if (word && strcmp(word, "torn") == 0) when = When::torn;
    if (word && strcmp(word, "after") == 0) when = When::after;
    if (word && strcmp(word, "error") == 0) when = When::error;
  }
};

// Created at the first call, which may come before this library's constructors run.
Plan& plan() {
  static Plan the_plan;
  return the_plan;
}

[[noreturn]] void die() {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// The part of an absolute path below the directory, or nullptr if it is elsewhere.
const char* below(const char* path) {
  const size_t n = strlen(plan().directory);
  if (n == 0 || strncmp(path, plan().directory, n) != 0) return nullptr;
  if (path[n] == '\0') return ".";
  return path[n] == '/' ? path + n + 1 : nullptr;
}

// Both write the absolute name into `out`, with links in the parent resolved but not the last
// component, because that is what is created, renamed or removed.
bool name_of_fd(int fd, char* out) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, out, PATH_MAX - 1);
  if (n < 0) return false;
  out[n] = '\0';
  return true;
}

bool name_of_path(int dirfd, const char* path, char* out) {
  char full[2 * PATH_MAX];
  char base[PATH_MAX];
  if (path[0] == '/') {
    snprintf(full, sizeof(full), "%s", path);
  } else {
    if (dirfd == AT_FDCWD ? getcwd(base, sizeof(base)) == nullptr : !name_of_fd(dirfd, base)) {
      return false;
    }
    snprintf(full, sizeof(full), "%s/%s", base, path);
  }
  size_t n = strlen(full);
  while (n > 1 && full[n - 1] == '/') full[--n] = '\0';
  char* slash = strrchr(full, '/');
  if (!slash) return false;
  char last[PATH_MAX];
  snprintf(last, sizeof(last), "%s", slash + 1);
  *slash = '\0';
  if (!realpath(full[0] ? full : "/", base)) return false;
  const size_t m = strlen(base);
  if (m + strlen(last) + 2 > PATH_MAX) return false;
  memcpy(out, base, m);
  out[m] = '/';
  memcpy(out + m + 1, last, strlen(last) + 1);
  return true;
}

// Numbers one call and does what the plan says. Lives around the real call.
class Call {
 public:
  Call(const char* name, long bytes, const char* path, const char* to = nullptr) {
    const char* relative = path ? below(path) : nullptr;
    const char* relative_to = to ? below(to) : nullptr;
    if (!relative && !relative_to) return;
    Plan& p = plan();
    pthread_mutex_lock(&p.mutex);
    counted_ = true;
    number_ = ++p.calls;
    if (p.log >= 0) {
      char line[3 * PATH_MAX];
      const int n = snprintf(line, sizeof(line), "%ld %s %ld %s%s%s\n", number_, name, bytes,
                             relative ? relative : path, to ? " " : "",
                             to ? (relative_to ? relative_to : to) : "");
      (void)!real<ssize_t(int, const void*, size_t)>("write")(p.log, line, static_cast<size_t>(n));
    }
    if (number_ == p.at && p.when == When::before) die();
    if (number_ == p.at && p.when == When::torn && bytes == 0) die();
    const bool frees = strcmp(name, "unlink") == 0 || strcmp(name, "rmdir") == 0;
    fails_ = p.when == When::error && p.at > 0 && (number_ == p.at || (number_ > p.at && !frees));
  }
  ~Call() {
    if (!counted_) return;
    const int kept = errno;
    if (number_ == plan().at && plan().when == When::after) die();
    pthread_mutex_unlock(&plan().mutex);
    errno = kept;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool fails() const {
    if (fails_) errno = plan().error_number;
    return fails_;
  }
  bool torn() const { return counted_ && number_ == plan().at && plan().when == When::torn; }

 private:
  bool counted_ = false;
  bool fails_ = false;
  long number_ = 0;
};

constexpr int kChanges = O_CREAT | O_TRUNC;

template <typename Open>
int counted_open(int dirfd, const char* path, int flags, const Open& call) {
  if (!(flags & kChanges)) return call();
  char name[PATH_MAX];
  Call counted("open", 0, name_of_path(dirfd, path, name) ? name : nullptr);
  return counted.fails() ? -1 : call();
}

mode_t mode_of(int flags, va_list arguments) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static auto* const next = real<ssize_t(int, const void*, size_t)>("write");
  char name[PATH_MAX];
  Call call("write", static_cast<long>(bytes), name_of_fd(fd, name) ? name : nullptr);
  if (call.fails()) return -1;
  if (call.torn()) {
    (void)!next(fd, data, bytes / 2);
    die();
  }
  return next(fd, data, bytes);
}

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  static auto* const next = real<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  char name[PATH_MAX];
  Call call("pwrite", static_cast<long>(bytes), name_of_fd(fd, name) ? name : nullptr);
  if (call.fails()) return -1;
  if (call.torn()) {
    (void)!next(fd, data, bytes / 2, offset);
    die();
  }
  return next(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) {
  return pwrite(fd, data, bytes, offset);
}

ssize_t writev(int fd, const iovec* pieces, int count) {
  static auto* const next = real<ssize_t(int, const iovec*, int)>("writev");
  long bytes = 0;
  for (int i = 0; i < count; ++i) bytes += static_cast<long>(pieces[i].iov_len);
  char name[PATH_MAX];
  Call call("writev", bytes, name_of_fd(fd, name) ? name : nullptr);
  if (call.fails()) return -1;
  if (call.torn()) {
    (void)!next(fd, pieces, count / 2);
    die();
  }
  return next(fd, pieces, count);
}

ssize_t pwritev(int fd, const iovec* pieces, int count, off_t offset) {
  static auto* const next = real<ssize_t(int, const iovec*, int, off_t)>("pwritev");
  char name[PATH_MAX];
  Call call("pwritev", 0, name_of_fd(fd, name) ? name : nullptr);
  return call.fails() ? -1 : next(fd, pieces, count, offset);
}

int fsync(int fd) {
  static auto* const next = real<int(int)>("fsync");
  char name[PATH_MAX];
  Call call("fsync", 0, name_of_fd(fd, name) ? name : nullptr);
  return call.fails() ? -1 : next(fd);
}

int fdatasync(int fd) {
  static auto* const next = real<int(int)>("fdatasync");
  char name[PATH_MAX];
  Call call("fdatasync", 0, name_of_fd(fd, name) ? name : nullptr);
  return call.fails() ? -1 : next(fd);
}

int ftruncate(int fd, off_t size) {
  static auto* const next = real<int(int, off_t)>("ftruncate");
  char name[PATH_MAX];
  Call call("ftruncate", 0, name_of_fd(fd, name) ? name : nullptr);
  return call.fails() ? -1 : next(fd, size);
}
int ftruncate64(int fd, off64_t size) {
  return ftruncate(fd, size);
}

int truncate(const char* path, off_t size) {
  static auto* const next = real<int(const char*, off_t)>("truncate");
  char name[PATH_MAX];
  Call call("truncate", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(path, size);
}

int rename(const char* from, const char* to) {
  static auto* const next = real<int(const char*, const char*)>("rename");
  char a[PATH_MAX], b[PATH_MAX];
  Call call("rename", 0, name_of_path(AT_FDCWD, from, a) ? a : nullptr,
            name_of_path(AT_FDCWD, to, b) ? b : nullptr);
  return call.fails() ? -1 : next(from, to);
}

int renameat(int from_fd, const char* from, int to_fd, const char* to) {
  static auto* const next = real<int(int, const char*, int, const char*)>("renameat");
  char a[PATH_MAX], b[PATH_MAX];
  Call call("rename", 0, name_of_path(from_fd, from, a) ? a : nullptr,
            name_of_path(to_fd, to, b) ? b : nullptr);
  return call.fails() ? -1 : next(from_fd, from, to_fd, to);
}

int renameat2(int from_fd, const char* from, int to_fd, const char* to, unsigned flags) {
  static auto* const next = real<int(int, const char*, int, const char*, unsigned)>("renameat2");
  char a[PATH_MAX], b[PATH_MAX];
  Call call("rename", 0, name_of_path(from_fd, from, a) ? a : nullptr,
            name_of_path(to_fd, to, b) ? b : nullptr);
  return call.fails() ? -1 : next(from_fd, from, to_fd, to, flags);
}

int unlink(const char* path) {
  static auto* const next = real<int(const char*)>("unlink");
  char name[PATH_MAX];
  Call call("unlink", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(path);
}

int unlinkat(int dirfd, const char* path, int flags) {
  static auto* const next = real<int(int, const char*, int)>("unlinkat");
  char name[PATH_MAX];
  Call call(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0,
            name_of_path(dirfd, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(dirfd, path, flags);
}

int rmdir(const char* path) {
  static auto* const next = real<int(const char*)>("rmdir");
  char name[PATH_MAX];
  Call call("rmdir", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(path);
}

int remove(const char* path) {
  static auto* const next = real<int(const char*)>("remove");
  char name[PATH_MAX];
  Call call("unlink", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(path);
}

int mkdir(const char* path, mode_t mode) {
  static auto* const next = real<int(const char*, mode_t)>("mkdir");
  char name[PATH_MAX];
  Call call("mkdir", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(path, mode);
}

int mkdirat(int dirfd, const char* path, mode_t mode) {
  static auto* const next = real<int(int, const char*, mode_t)>("mkdirat");
  char name[PATH_MAX];
  Call call("mkdir", 0, name_of_path(dirfd, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(dirfd, path, mode);
}

int link(const char* from, const char* to) {
  static auto* const next = real<int(const char*, const char*)>("link");
  char name[PATH_MAX];
  Call call("link", 0, name_of_path(AT_FDCWD, to, name) ? name : nullptr);
  return call.fails() ? -1 : next(from, to);
}

int symlink(const char* target, const char* path) {
  static auto* const next = real<int(const char*, const char*)>("symlink");
  char name[PATH_MAX];
  Call call("symlink", 0, name_of_path(AT_FDCWD, path, name) ? name : nullptr);
  return call.fails() ? -1 : next(target, path);
}

int open(const char* path, int flags, ...) {
  static auto* const next = real<int(const char*, int, ...)>("open");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return counted_open(AT_FDCWD, path, flags, [&] { return next(path, flags, mode); });
}
int open64(const char* path, int flags, ...) {
  static auto* const next = real<int(const char*, int, ...)>("open64");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return counted_open(AT_FDCWD, path, flags, [&] { return next(path, flags, mode); });
}
int openat(int dirfd, const char* path, int flags, ...) {
  static auto* const next = real<int(int, const char*, int, ...)>("openat");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return counted_open(dirfd, path, flags, [&] { return next(dirfd, path, flags, mode); });
}
int openat64(int dirfd, const char* path, int flags, ...) {
  static auto* const next = real<int(int, const char*, int, ...)>("openat64");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return counted_open(dirfd, path, flags, [&] { return next(dirfd, path, flags, mode); });
}
int creat(const char* path, mode_t mode) {
  return open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

}  // extern "C"
