// Files that exist either completely or not at all, and the checksums that prove it.
//
// Errors of system calls name the file and give the system's message. Their kind depends on the
// reason. What a user can fix with another path or permission (missing, not a directory, not
// permitted, read-only, name too long) is a UserError (exit code 2). What went wrong with the
// machine (disk full, quota, input/output error, too many open files) is a CheckError (exit code
// 1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

// Throws "cannot ACTION PATH: MESSAGE", with the system's message for error_number, of the kind
// above.
[[noreturn]] void throw_io_error(std::string_view action, const std::filesystem::path& path,
                                 int error_number);

// A manifest's entry for a file: bytes, and XXH3-128 in 32 hexadecimal digits, as `xxh128sum`
// prints it.
struct FileDigest {
  uint64_t size = 0;
  std::string xxh128;
  bool operator==(const FileDigest&) const = default;
};

// Streaming XXH3-128.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  void update(const void* data, size_t bytes);
  FileDigest digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Owns a file descriptor.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int fd) : fd_(fd) {}
  ~FileHandle();
  FileHandle(FileHandle&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  FileHandle& operator=(FileHandle&& other) noexcept;
  explicit operator bool() const { return fd_ >= 0; }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// Opens a regular file for reading; refuses a directory, pipe or device. UserError or CheckError as
// above.
FileHandle open_regular_file(const std::filesystem::path& path, uint64_t* size);

// Writes all bytes to a descriptor, in as many calls as it takes.
void write_all(int fd, const void* data, size_t bytes, const std::filesystem::path& path);

// A file that gets its name only when it is complete and on disk. It is written as `path`.partial;
// commit() flushes it, fsyncs it, renames it over `path` and fsyncs the directory. If it is
// destroyed before commit(), the partial file is removed and an existing `path` is unchanged. The
// next AtomicFile of the same path overwrites a .partial file left by a crash.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path, size_t buffer_bytes = 4 << 20);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Size and checksum of what was written. No write() may follow.
  FileDigest commit();

  const std::filesystem::path& path() const { return path_; }

 private:
  void flush();

  std::filesystem::path path_;
  std::filesystem::path partial_;
  FileHandle file_;
  Hasher hasher_;
  std::vector<char> buffer_;
  size_t filled_ = 0;
  bool committed_ = false;
};

// AtomicFile in one call.
FileDigest write_file(const std::filesystem::path& path, std::string_view text);

// The whole of a regular file of at most max_bytes; UserError if it is longer.
std::string read_whole_file(const std::filesystem::path& path, uint64_t max_bytes);

// Reads the whole file, 1 MiB at a time, for its size and checksum.
FileDigest digest_file(const std::filesystem::path& path);

// Makes names created, renamed or removed in this directory durable.
void sync_directory(const std::filesystem::path& directory);

// The directory that holds `path`: "." for a bare name.
std::filesystem::path parent_of(const std::filesystem::path& path);

// Whether something exists at `path`, following links. Errors as above if the system cannot tell.
bool is_there(const std::filesystem::path& path);

// rename(2), unlink(2), rmdir(2), mkdir(2) with errors as above. make_directory does nothing if the
// directory exists.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);
void remove_file(const std::filesystem::path& path);
void remove_directory(const std::filesystem::path& path);
void make_directory(const std::filesystem::path& path);

// Creates a directory and its missing parents, durably.
void make_directories(const std::filesystem::path& path);

// A regular file, mapped read-only. An empty file has data() == nullptr. If the file shrinks or its
// disk fails, reading data() directly raises SIGBUS; read() throws a CheckError instead.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  // Copies bytes [offset, offset + bytes), which must lie inside size(), to `out`.
  void read(uint64_t offset, void* out, size_t bytes) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace lathe
