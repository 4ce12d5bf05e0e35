#include "src/io/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "kernels/device/error.h"
#include "kernels/device/round.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

size_t whole_units(size_t bytes) {
  return bytes - bytes % ScratchFile::kAlignment;
}

// A file without a name. Network file systems have no O_TMPFILE, and memory has no O_DIRECT.
FileHandle create_unnamed(const fs::path& directory) {
  for (const int direct : {O_DIRECT, 0}) {
    FileHandle file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | direct, 0600));
    if (file) return file;
    if (errno != EINVAL && errno != EOPNOTSUPP && errno != EISDIR) break;
    std::string name = (directory / "lathe-XXXXXX").string();
    file = FileHandle(::mkostemp(name.data(), O_CLOEXEC | direct));
    if (file) {
      ::unlink(name.c_str());
      return file;
    }
    if (errno != EINVAL) break;
  }
  throw_io_error("create a file in", directory, errno);
}

}  // namespace

ScratchFile::ScratchFile(const fs::path& directory, uint64_t bytes, std::string what)
    : directory_(directory), what_(std::move(what)), file_(create_unnamed(directory)) {
  const auto size = static_cast<off_t>(bytes);
  if (bytes > 0 && ::fallocate(file_.get(), 0, 0, size) != 0) {
    const bool cannot_reserve = errno == EOPNOTSUPP;
    if (!cannot_reserve || ::ftruncate(file_.get(), size) != 0) {
      const int error = errno;
      throw_io_error(fmt::format("reserve {} bytes for {} in", bytes, what_), directory, error);
    }
  }
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { work(); });
}

ScratchFile::~ScratchFile() {
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

// Direct transfers continue at a multiple of the alignment.
void ScratchFile::write_piece(const Piece& piece) const {
  for (size_t done = 0; done < piece.bytes;) {
    const ssize_t now = ::pwrite(file_.get(), piece.memory + done, piece.bytes - done,
                                 static_cast<off_t>(piece.offset + done));
    if (now < 0 && errno == EINTR) continue;
    const size_t whole = now < 0 ? 0 : whole_units(static_cast<size_t>(now));
    if (now < 0) throw_io_error(fmt::format("write {} to", what_), directory_, errno);
    if (whole == 0) throw_io_error(fmt::format("write {} to", what_), directory_, ENOSPC);
    done += whole;
  }
}

void ScratchFile::read_piece(const Piece& piece) const {
  for (size_t done = 0; done < piece.bytes;) {
    const ssize_t now = ::pread(file_.get(), piece.memory + done, piece.bytes - done,
                                static_cast<off_t>(piece.offset + done));
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) throw_io_error(fmt::format("read {} from", what_), directory_, errno);
    const size_t whole = whole_units(static_cast<size_t>(now));
    if (whole == 0)
      throw CheckError(fmt::format("cannot read {}: the file has become shorter", place(piece)));
    done += whole;
  }
}

}  // namespace lathe
