#include "src/io/file.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>
#include <utility>

#include "kernels/device/error.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// Advice for errors that another path or permission would fix; empty for others.
std::string_view advice_for(int error_number) {
  switch (error_number) {
    case EACCES:
    case EPERM:
      return "allow it or name another place";
    case EROFS:
      return "name a place that can be written";
    case ENOENT:
      return "check the path";
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
      return "name another path";
    case EEXIST:
    case ENOTEMPTY:
      return "move it away or name another path";
    default:
      return {};
  }
}

}  // namespace

void throw_io_error(std::string_view action, const fs::path& path, int error_number) {
  const std::string words = std::generic_category().message(error_number);
  const std::string_view advice = advice_for(error_number);
  if (!advice.empty()) {
    throw UserError("cannot {} {}: {}; {}", action, path.string(), words, advice);
  }
  throw CheckError(fmt::format("cannot {} {}: {}", action, path.string(), words));
}

struct Hasher::State {
  XXH3_state_t xxh3;
  uint64_t size = 0;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;

void Hasher::update(const void* data, size_t bytes) {
  if (bytes == 0) return;
  XXH3_128bits_update(&state_->xxh3, data, bytes);
  state_->size += bytes;
}

FileDigest Hasher::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return {state_->size, fmt::format("{:016x}{:016x}", hash.high64, hash.low64)};
}

FileHandle::~FileHandle() {
  if (fd_ >= 0) ::close(fd_);
}

FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileHandle open_regular_file(const fs::path& path, uint64_t* size) {
  // Non-blocking, so that opening a pipe without a writer returns at once; it is refused below.
  FileHandle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) throw_io_error("open", path, errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_io_error("stat", path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw UserError("{} is not a regular file; name one", path.string());
  }
  if (size) *size = static_cast<uint64_t>(status.st_size);
  return file;
}

void write_all(int fd, const void* data, size_t bytes, const fs::path& path) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd, next, std::min<size_t>(bytes, 1 << 30));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_io_error("write", path, errno);
    }
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

AtomicFile::AtomicFile(const fs::path& path, size_t buffer_bytes)
    : path_(path),
      partial_(path.string() + ".partial"),
      buffer_(std::max<size_t>(buffer_bytes, 1)) {
  // If the final name cannot be taken, fail now, before hours of work are written.
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    throw_io_error("write", path_, EISDIR);
  }
  file_ = FileHandle(
      ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!file_) throw_io_error("create", partial_, errno);
}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(partial_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  LATHE_CHECK(file_ && !committed_, "{} is already complete", path_.string());
  hasher_.update(data, bytes);
  const char* next = static_cast<const char*>(data);
  if (bytes >= buffer_.size()) {  // avoid a copy if the data would fill the buffer
    flush();
    write_all(file_.get(), next, bytes, path_);
    return;
  }
  const size_t fits = std::min(bytes, buffer_.size() - filled_);
  std::copy_n(next, fits, buffer_.data() + filled_);
  filled_ += fits;
  if (filled_ == buffer_.size()) flush();
  std::copy_n(next + fits, bytes - fits, buffer_.data() + filled_);
  filled_ += bytes - fits;
}

void AtomicFile::flush() {
  write_all(file_.get(), buffer_.data(), filled_, path_);
  filled_ = 0;
}

FileDigest AtomicFile::commit() {
  LATHE_CHECK(file_ && !committed_, "{} is already complete", path_.string());
  flush();
  if (::fsync(file_.get()) != 0) throw_io_error("fsync", path_, errno);
  file_ = FileHandle();
  rename_path(partial_, path_);
  committed_ = true;
  sync_directory(parent_of(path_));
  return hasher_.digest();
}

FileDigest write_file(const fs::path& path, std::string_view text) {
  AtomicFile file(path, std::min<size_t>(text.size() + 1, 4 << 20));
  file.write(text);
  return file.commit();
}

namespace {

// Calls sink(data, bytes) for each piece of the file in order, at most `limit` bytes in total.
// `size` is the file's claimed size and only a hint.
template <typename Sink>
void read_pieces(int fd, const fs::path& path, uint64_t size, uint64_t limit, const Sink& sink) {
  std::vector<char> piece(std::clamp<uint64_t>(size, 4 << 10, 1 << 20));
  while (limit > 0) {
    const ssize_t got = ::read(fd, piece.data(), std::min<uint64_t>(piece.size(), limit));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_io_error("read", path, errno);
    if (got == 0) return;
    sink(piece.data(), static_cast<size_t>(got));
    limit -= static_cast<uint64_t>(got);
  }
}

}  // namespace

std::string read_whole_file(const fs::path& path, uint64_t max_bytes) {
  uint64_t size = 0;
  const FileHandle file = open_regular_file(path, &size);
  const auto refuse = [&](uint64_t found) {
    throw UserError(
        "{} has {} bytes, more than the {} that such a file may have; name another file",
        path.string(), found, max_bytes);
  };
  if (size > max_bytes) refuse(size);
  std::string text;
  text.reserve(size);
  // One byte beyond the limit, for a file that grows or that, as in /proc, reports no size.
  read_pieces(file.get(), path, size, max_bytes + 1,
              [&](const char* data, size_t bytes) { text.append(data, bytes); });
  if (text.size() > max_bytes) refuse(text.size());
  return text;
}

FileDigest digest_file(const fs::path& path) {
  uint64_t size = 0;
  const FileHandle file = open_regular_file(path, &size);
  Hasher hasher;
  read_pieces(file.get(), path, size, UINT64_MAX,
              [&](const char* data, size_t bytes) { hasher.update(data, bytes); });
  return hasher.digest();
}

void sync_directory(const fs::path& directory) {
  const FileHandle handle(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!handle) throw_io_error("open", directory, errno);
  // Some network file systems cannot fsync a directory and return EINVAL: they do not need it.
  if (::fsync(handle.get()) != 0 && errno != EINVAL) throw_io_error("fsync", directory, errno);
}

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

bool is_there(const std::filesystem::path& path) {
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  if (error) throw_io_error("look at", path, error.value());
  return there;
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_io_error("rename to", to, errno);
}

void remove_file(const fs::path& path) {
  if (::unlink(path.c_str()) != 0) throw_io_error("remove", path, errno);
}

void remove_directory(const fs::path& path) {
  if (::rmdir(path.c_str()) != 0) throw_io_error("remove", path, errno);
}

void make_directory(const fs::path& path) {
  if (::mkdir(path.c_str(), 0777) == 0) return;
  const int error = errno;
  struct stat status {};
  if (error == EEXIST && ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return;
  throw_io_error("create directory", path, error);
}

void make_directories(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return;
  const fs::path parent = parent_of(path);
  if (parent == path) throw_io_error("create directory", path, ENOENT);
  make_directories(parent);
  if (!path.has_filename()) return;  // "a/b/": its parent "a/b" was the directory wanted
  make_directory(path);
  sync_directory(parent);
}

namespace {

// Where this thread continues if the memory that it copies disappears.
thread_local sigjmp_buf* volatile copy_failed = nullptr;

extern "C" void lathe_on_bus_error(int signal) {
  if (copy_failed) ::siglongjmp(*copy_failed, 1);
  std::signal(signal, SIG_DFL);  // not ours: it is raised again as soon as this handler returns
}

void catch_bus_errors() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_handler = lathe_on_bus_error;
    sigemptyset(&action.sa_mask);
    return ::sigaction(SIGBUS, &action, nullptr) == 0;
  }();
  static_cast<void>(installed);
}

// False if the memory at `from` is gone. No object with a destructor may live between setjmp and
// the copy.
bool copy_mapped(void* to, const void* from, size_t bytes) {
  sigjmp_buf failed;
  if (::sigsetjmp(failed, /*savemask=*/1) != 0) {
    copy_failed = nullptr;
    return false;
  }
  copy_failed = &failed;
  std::atomic_signal_fence(std::memory_order_seq_cst);  // keeps the copy between the two
  std::memcpy(to, from, bytes);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  copy_failed = nullptr;
  return true;
}

}  // namespace

void MappedFile::read(uint64_t offset, void* out, size_t bytes) const {
  LATHE_CHECK(offset <= size_ && bytes <= size_ - offset, "{} + {} of {}", offset, bytes, size_);
  if (bytes == 0 || copy_mapped(out, data_ + offset, bytes)) return;
  struct stat status {};
  const bool there = ::stat(path_.c_str(), &status) == 0;
  throw CheckError(fmt::format(
      "cannot read {}: {}", path_.string(),
      there && static_cast<uint64_t>(status.st_size) < size_
          ? fmt::format("it had {} bytes when it was opened, and now has {}", size_, status.st_size)
          : "its pages cannot be read any more; the file was changed or its disk is failing"));
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  catch_bus_errors();
  const FileHandle file = open_regular_file(path, &size_);
  if (size_ == 0) return;
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (memory == MAP_FAILED) throw_io_error("map", path, errno);
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

}  // namespace lathe
