// A library for LD_PRELOAD under which a disk is slow or fails, for files without a name
// (src/io/scratch_file.h).
//
//   LATHE_DISK_DIR     the files of this directory; without it nothing is done
//   LATHE_DISK_FAULT   slow          every read and write takes up to two more milliseconds
//                      plain         no O_TMPFILE, no O_DIRECT, no fallocate
//                      no-space      fallocate: ENOSPC
//                      write-error   EIO
//                      write-full    ENOSPC
//                      write-part    writes half of the bytes, in whole blocks; not an error
//                      read-error    EIO
//                      read-end      0 bytes, as at the end of a file
//                      read-flip     one bit is not what was written
//   LATHE_DISK_AT      the number, from 1, of the read or write at which it happens
//   LATHE_DISK_RANK    only in the process with this OMPI_COMM_WORLD_RANK
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace {

constexpr size_t kBlock = 4096;

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

const char* fault() {
  static const char* const text = [] {
    const char* wanted = getenv("LATHE_DISK_RANK");
    const char* rank = getenv("OMPI_COMM_WORLD_RANK");
    const char* fault = getenv("LATHE_DISK_FAULT");
    const bool mine = !wanted || (rank && strcmp(wanted, rank) == 0);
    return mine && fault ? fault : "";
  }();
  return text;
}

bool is_watched(int fd) {
  static const char* const directory = getenv("LATHE_DISK_DIR");
  char link[64], name[PATH_MAX];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t n = directory ? readlink(link, name, sizeof(name) - 1) : -1;
  if (n < 0) return false;
  name[n] = '\0';
  return strncmp(name, directory, strlen(directory)) == 0 && strstr(name, " (deleted)") != nullptr;
}

// Whether this call, one of `kind`, is the one at which the fault happens.
bool is_due(int fd, const char* kind, std::atomic<long>& calls) {
  if (fault()[0] == '\0' || !is_watched(fd)) return false;
  if (strcmp(fault(), "plain") == 0) return (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
  if (strcmp(fault(), "slow") == 0) {
    static std::atomic<unsigned> seed{1};
    usleep((seed.fetch_add(1) * 2654435761u >> 16) % 2000);
    return false;
  }
  static const long at = getenv("LATHE_DISK_AT") ? atol(getenv("LATHE_DISK_AT")) : 1;
  return strncmp(fault(), kind, strlen(kind)) == 0 && ++calls == at;
}

ssize_t fail(int error) {
  errno = error;
  return -1;
}

ssize_t faulty_write(int fd, const void* data, size_t bytes, off64_t offset) {
  static std::atomic<long> calls{0};
  const bool due = is_due(fd, "write", calls);
  if (due && strcmp(fault(), "plain") == 0) return fail(EINVAL);
  if (due && strcmp(fault(), "write-error") == 0) return fail(EIO);
  if (due && strcmp(fault(), "write-full") == 0) return fail(ENOSPC);
  if (due && bytes > kBlock) bytes = bytes / 2 / kBlock * kBlock;
  return real<ssize_t(int, const void*, size_t, off64_t)>("pwrite64")(fd, data, bytes, offset);
}

ssize_t faulty_read(int fd, void* data, size_t bytes, off64_t offset) {
  static std::atomic<long> calls{0};
  const bool due = is_due(fd, "read", calls);
  if (due && strcmp(fault(), "plain") == 0) return fail(EINVAL);
  if (due && strcmp(fault(), "read-error") == 0) return fail(EIO);
  if (due && strcmp(fault(), "read-end") == 0) return 0;
  const ssize_t n = real<ssize_t(int, void*, size_t, off64_t)>("pread64")(fd, data, bytes, offset);
  if (due && n > 0) static_cast<char*>(data)[n / 2] ^= 1;
  return n;
}

}  // namespace

extern "C" {

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  return faulty_write(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) {
  return faulty_write(fd, data, bytes, offset);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  return faulty_read(fd, data, bytes, offset);
}
ssize_t pread64(int fd, void* data, size_t bytes, off64_t offset) {
  return faulty_read(fd, data, bytes, offset);
}
int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const auto mode = static_cast<mode_t>(va_arg(arguments, int));  // not read if it was not given
  va_end(arguments);
  static const char* const directory = getenv("LATHE_DISK_DIR");
  if ((flags & O_TMPFILE) == O_TMPFILE && strcmp(fault(), "plain") == 0 && directory &&
      strncmp(path, directory, strlen(directory)) == 0)
    return static_cast<int>(fail(EOPNOTSUPP));
  return real<int(const char*, int, ...)>("open")(path, flags, mode);
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (strcmp(fault(), "no-space") == 0 && is_watched(fd)) return static_cast<int>(fail(ENOSPC));
  if (strcmp(fault(), "plain") == 0 && is_watched(fd)) return static_cast<int>(fail(EOPNOTSUPP));
  return real<int(int, int, off_t, off_t)>("fallocate")(fd, mode, offset, bytes);
}

}  // extern "C"
