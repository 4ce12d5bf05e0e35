// Files as the data room needs them: mapped for reading, and written so that a file either has its
// whole content or does not exist.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace lathe {

// A regular file mapped for reading. Throws UserError where it is missing, no regular file or
// unreadable.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view text() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// Writes `path` + ".partial"; commit() fsyncs it, renames it to `path` and fsyncs the folder.
// Without commit() nothing stays behind. Throws UserError where the file cannot be created or
// written (a full disk, a read-only folder).
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* data, size_t bytes);
  void overwrite(uint64_t offset, const void* data, size_t bytes);
  void commit();

 private:
  std::filesystem::path path_, partial_;
  int fd_ = -1;
};

// Makes renames and removals in a folder durable.
void sync_directory(const std::filesystem::path& directory);

}  // namespace lathe
