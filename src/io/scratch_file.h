// A file for data that does not fit into memory and that nobody needs after the program: it has no
// name, so it is gone when the program ends, however that ends. Threads write and read parts of it
// while the program goes on. Each part is read back as it was written: a checksum in memory tells
// if it is not.
//
// Errors are those of src/io/file.h, and CheckError (exit code 1) for a file that is shorter or has
// other bytes than were written.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "src/io/file.h"

namespace lathe {

class ScratchFile {
 public:
  // Offsets, sizes and addresses are multiples of this, so that the data need not pass through the
  // system's cache (O_DIRECT), if the file system allows it.
  static constexpr size_t kAlignment = 4096;

  // Reserves all bytes in a directory. `what` they are, for messages: "optimizer states".
  ScratchFile(const std::filesystem::path& directory, uint64_t bytes, std::string what);
  // Waits for all requests.
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  // Both return the request's number: the first has 1; 0 is none. The memory must stay until it is
  // done. read() reads exactly what one write() wrote, after the request `after`.
  using Request = int64_t;
  Request write(uint64_t offset, const void* from, size_t bytes);
  Request read(uint64_t offset, void* to, size_t bytes, Request after = 0);
  // Waits until it is done. After the first error of any request nothing more is written or read,
  // and wait() and rethrow() throw that error.
  void wait(Request request);
  void rethrow();

  uint64_t bytes_written() const { return bytes_written_; }  // by all requests so far
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  // Requests are done in pieces, by this many threads. Eight threads that wait for the disk read as
  // much from it as a queue of 32 requests in io_uring, or more
  // (profiling/results/2026-11-27-offload-to-files.md), and they also compute the checksums.
  static constexpr size_t kPiece = size_t{2} << 20;
  static constexpr int kThreads = 8;

  struct Piece {
    Request request = 0, after = 0;
    uint64_t offset = 0;
    char* memory = nullptr;
    size_t bytes = 0;
    bool write = false;
  };
  Request put(uint64_t offset, char* memory, size_t bytes, bool write, Request after);
  bool done(Request request) const { return !pieces_left_.contains(request); }
  void end_threads();
  void work();
  void run(const Piece& piece);
  void write_piece(const Piece& piece) const;
  void read_piece(const Piece& piece) const;
  std::string place(const Piece& piece) const;

  const std::filesystem::path directory_;
  const std::string what_;
  FileHandle file_;
  uint64_t bytes_written_ = 0, bytes_read_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  std::map<Request, int64_t> pieces_left_;  // of each request that is not done
  std::map<uint64_t, uint64_t> checksums_;  // XXH3 of the piece at an offset
  std::exception_ptr error_;
  Request last_ = 0;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lathe
