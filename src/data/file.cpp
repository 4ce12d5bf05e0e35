#include "src/data/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/device/error.h"

namespace lathe {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    throw UserError("cannot read {}: {}; check the path and its permissions", path.string(),
                    std::strerror(errno));
  }
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    throw UserError("{} is not a regular file; give the path of a file", path.string());
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {
    void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    const int error = errno;
    ::close(fd);
    if (map == MAP_FAILED) {
      throw UserError("cannot map {}: {}", path.string(), std::strerror(error));
    }
    data_ = static_cast<const char*>(map);
  } else {
    ::close(fd);
  }
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

AtomicFile::AtomicFile(std::filesystem::path path)
    : path_(std::move(path)), partial_(path_.string() + ".partial") {
  fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) {
    throw UserError("cannot write {}: {}; choose a folder that can be written", path_.string(),
                    std::strerror(errno));
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

static void write_all(int fd, const char* data, size_t bytes, const std::filesystem::path& path) {
  while (bytes > 0) {
    const ssize_t written = ::write(fd, data, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      throw UserError("cannot write {}: {}; nothing was changed", path.string(),
                      std::strerror(errno));
    }
    data += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::append(const void* data, size_t bytes) {
  write_all(fd_, static_cast<const char*>(data), bytes, path_);
}

void AtomicFile::overwrite(uint64_t offset, const void* data, size_t bytes) {
  const off_t end = ::lseek(fd_, 0, SEEK_CUR);
  LATHE_CHECK(end >= 0 && ::lseek(fd_, static_cast<off_t>(offset), SEEK_SET) >= 0, "{}",
              path_.string());
  write_all(fd_, static_cast<const char*>(data), bytes, path_);
  LATHE_CHECK(::lseek(fd_, end, SEEK_SET) == end, "{}", path_.string());
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) {
    throw UserError("cannot write {}: {}; nothing was changed", path_.string(),
                    std::strerror(errno));
  }
  ::close(std::exchange(fd_, -1));
  std::error_code error;
  std::filesystem::rename(partial_, path_, error);
  if (error) {
    ::unlink(partial_.c_str());
    throw UserError("cannot write {}: {}; nothing was changed", path_.string(), error.message());
  }
  sync_directory(path_.parent_path());
}

void sync_directory(const std::filesystem::path& directory) {
  const std::string name = directory.empty() ? "." : directory.string();
  const int fd = ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw UserError("cannot open {}: {}", name, std::strerror(errno));
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  // Some file systems have no fsync for folders; then the rename is as durable as it gets.
  if (result != 0 && error != EINVAL) {
    throw UserError("cannot write {}: {}", name, std::strerror(error));
  }
}

}  // namespace lathe
