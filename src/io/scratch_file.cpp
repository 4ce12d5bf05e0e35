#include "src/io/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "kernels/device/error.h"
#include "kernels/device/round.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// A file without a name. Network file systems have no O_TMPFILE. Transfers go past the system's
// cache if the file system allows it; one in memory does not.
FileHandle create_unnamed(const fs::path& directory) {
  FileHandle file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
    std::string name = (directory / "lathe-XXXXXX").string();
    file = FileHandle(::mkostemp(name.data(), O_CLOEXEC));
    if (file) ::unlink(name.c_str());
  }
  if (!file) throw_io_error("create a file in", directory, errno);
  ::fcntl(file.get(), F_SETFL, O_DIRECT);
  return file;
}

// Whether transfers go past the cache.
bool is_direct(int fd) {
  return (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
}

// Calls transfer() until it moves bytes; returns how many, in whole units of alignment. Some file
// systems refuse a direct transfer only when one is made, and so do disks that cannot reach the
// memory; from then on all go through the cache.
template <typename Transfer>
size_t moved_by(int fd, const Transfer& transfer) {
  for (;;) {
    const bool direct = is_direct(fd);
    const ssize_t now = transfer();
    if (now >= 0)
      return static_cast<size_t>(now) / ScratchFile::kAlignment * ScratchFile::kAlignment;
    const int error = errno;
    if (error == EINTR) continue;
    if (!direct || (error != EINVAL && error != EFAULT))
      throw std::system_error(error, std::generic_category());
    ::fcntl(fd, F_SETFL, 0);  // another thread may have done it already
  }
}

// Takes the space now; a file system that cannot promise it gives what it has later.
bool reserve(int fd, off_t bytes) {
  while (::fallocate(fd, 0, 0, bytes) != 0) {
    if (errno == EOPNOTSUPP) return ::ftruncate(fd, bytes) == 0;
    if (errno != EINTR) return false;
  }
  return true;
}

}  // namespace

ScratchFile::ScratchFile(const fs::path& directory, uint64_t bytes, std::string what)
    : directory_(directory), what_(std::move(what)), file_(create_unnamed(directory)) {
  if (!reserve(file_.get(), static_cast<off_t>(bytes))) {
    const int error = errno;
    throw_io_error(fmt::format("reserve {} bytes for {} in", bytes, what_), directory, error);
  }
  try {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { work(); });
  } catch (...) {
    end_threads();
    throw;
  }
}

ScratchFile::~ScratchFile() {
  end_threads();
}

void ScratchFile::end_threads() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

ScratchFile::Request ScratchFile::write(uint64_t offset, const void* from, size_t bytes) {
  bytes_written_ += bytes;
  return put(offset, static_cast<char*>(const_cast<void*>(from)), bytes, /*write=*/true, 0);
}

ScratchFile::Request ScratchFile::read(uint64_t offset, void* to, size_t bytes, Request after) {
  bytes_read_ += bytes;
  return put(offset, static_cast<char*>(to), bytes, /*write=*/false, after);
}

ScratchFile::Request ScratchFile::put(uint64_t offset, char* memory, size_t bytes, bool write,
                                      Request after) {
  LATHE_CHECK(bytes > 0 && offset % kAlignment == 0 && bytes % kAlignment == 0 &&
                  reinterpret_cast<uintptr_t>(memory) % kAlignment == 0,
              "{} bytes at {} are not aligned", bytes, offset);
  const std::lock_guard lock(mutex_);
  LATHE_CHECK(after <= last_);
  const Request request = ++last_;
  pieces_left_[request] = static_cast<int64_t>(ceil_div(bytes, kPiece));
  for (size_t done = 0; done < bytes; done += kPiece) {
    pieces_.push_back({.request = request,
                       .after = after,
                       .offset = offset + done,
                       .memory = memory + done,
                       .bytes = std::min(kPiece, bytes - done),
                       .write = write});
  }
  changed_.notify_all();
  return request;
}

void ScratchFile::wait(Request request) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done(request); });
  if (error_) std::rethrow_exception(error_);
}

void ScratchFile::rethrow() {
  wait(0);
}

// Pieces are taken in order, so those of an earlier request that this one waits for are already in
// the hands of other threads, or done.
void ScratchFile::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closed_ || !pieces_.empty(); });
    if (pieces_.empty()) return;
    const Piece piece = pieces_.front();
    pieces_.pop_front();
    changed_.wait(lock, [&] { return done(piece.after); });
    if (!error_) {
      lock.unlock();
      std::exception_ptr error;
      try {
        run(piece);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (!error_) error_ = error;
    }
    const auto left = pieces_left_.find(piece.request);
    if (--left->second > 0) continue;
    pieces_left_.erase(left);
    changed_.notify_all();
  }
}

void ScratchFile::run(const Piece& piece) {
  if (!piece.write) read_piece(piece);
  const uint64_t checksum = XXH3_64bits(piece.memory, piece.bytes);
  {
    const std::lock_guard lock(mutex_);
    if (piece.write) {
      checksums_[piece.offset] = checksum;
    } else {
      const auto written = checksums_.find(piece.offset);
      LATHE_CHECK(written != checksums_.end(), "nothing was written at {}", piece.offset);
      if (written->second != checksum) {
        throw CheckError(fmt::format(
            "cannot read {}: they have changed since they were written; the disk or the memory is "
            "failing",
            place(piece)));
      }
    }
  }
  if (piece.write) write_piece(piece);
}

std::string ScratchFile::place(const Piece& piece) const {
  return fmt::format("{} in {} (bytes {} to {})", what_, directory_.string(), piece.offset,
                     piece.offset + piece.bytes);
}

void ScratchFile::write_piece(const Piece& piece) const {
  const std::string action = fmt::format("write {} to", what_);
  try {
    for (size_t done = 0; done < piece.bytes;) {
      const size_t now = moved_by(file_.get(), [&] {
        return ::pwrite(file_.get(), piece.memory + done, piece.bytes - done,
                        static_cast<off_t>(piece.offset + done));
      });
      if (now == 0) throw_io_error(action, directory_, ENOSPC);
      done += now;
    }
  } catch (const std::system_error& error) {
    throw_io_error(action, directory_, error.code().value());
  }
}

void ScratchFile::read_piece(const Piece& piece) const {
  try {
    for (size_t done = 0; done < piece.bytes;) {
      const size_t now = moved_by(file_.get(), [&] {
        return ::pread(file_.get(), piece.memory + done, piece.bytes - done,
                       static_cast<off_t>(piece.offset + done));
      });
      if (now == 0)
        throw CheckError(fmt::format("cannot read {}: the file has become shorter", place(piece)));
      done += now;
    }
  } catch (const std::system_error& error) {
    throw_io_error(fmt::format("read {} from", what_), directory_, error.code().value());
  }
}

}  // namespace lathe
