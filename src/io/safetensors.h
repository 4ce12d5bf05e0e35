// The safetensors format: 8 bytes with the header's length (little-endian), the header (JSON: name
// -> dtype, shape, data_offsets; and __metadata__, strings), then the tensors' bytes back to back.
// https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/device/dtype.h"
#include "src/io/file.h"

namespace lathe {

// The number types that a file may contain. lathe can read those with a DType as numbers; it lists
// tensors of other types (an attention mask as BOOL, say) but does not read them.
enum class SafetensorsType : uint8_t {
  BOOL,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  F64,
  I64,
  U64
};
std::string_view name_of(SafetensorsType type);
size_t size_of(SafetensorsType type);
std::optional<DType> dtype_of_safetensors(SafetensorsType type);
SafetensorsType safetensors_type_of(DType dtype);

struct SafetensorsEntry {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<int64_t> shape;  // empty for a scalar
  uint64_t begin = 0;          // offsets in bytes from the first byte after the header
  uint64_t end = 0;

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // where in the file the tensors' bytes begin
};

// The reference's limit for a header.
inline constexpr uint64_t kSafetensorsMaxHeader = 100'000'000;

// Parses and validates a header. `head` is the beginning of the file, at least as far as the header
// goes (or the whole file if it is shorter); `file_size` is the size of the whole file; `file` is
// its name for errors. Each tensor's bytes must lie inside the file, match its shape and type, and
// follow the previous tensor without overlap or gap; the last must end with the file. A name may
// occur once. Uses memory in proportion to the header only. Throws UserError.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           std::string_view file);

// A safetensors file, mapped. All errors are UserErrors that name the file and the tensor.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path);

  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::filesystem::path& path() const { return path_; }

  // nullptr if there is no such tensor.
  const SafetensorsEntry* find(std::string_view name) const;
  const SafetensorsEntry& at(std::string_view name) const;

  // Copies bytes [offset, offset + bytes) of the tensor, which are little-endian. CheckError if the
  // file has shrunk since it was opened.
  void read_bytes(const SafetensorsEntry& entry, uint64_t offset, void* out, size_t bytes) const;

  // Copies `elements` numbers to `out`, converted from BF16, F32 or F64. Fails if the tensor has
  // another number of elements or another type.
  void read_as_float(std::string_view name, float* out, int64_t elements) const;
  // Elements [first, first + count) of a tensor, which must have as many.
  void read_as_float(const SafetensorsEntry& entry, int64_t first, float* out, int64_t count) const;

  // Copies `elements` numbers; the tensor must have exactly this type.
  void read(std::string_view name, DType dtype, void* out, int64_t elements) const;

 private:
  std::filesystem::path path_;
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, size_t> index_;  // views of the entries' names
};

// Writes a safetensors file in one pass: first declare all tensors, then write their bytes in the
// declared order, in pieces of any size; only the file's buffer is held in memory. The header is
// padded with spaces so that the data begins at a multiple of 8 bytes. Declare the widest types
// first, so that each tensor is aligned to its own type.
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(const std::filesystem::path& path,
                             std::map<std::string, std::string> metadata = {});

  void declare(std::string_view name, DType dtype, std::vector<int64_t> shape);

  // The next bytes of tensor `name`, which must be the first declared tensor that is incomplete.
  // The first call writes the header; no more tensors can be declared.
  void write(std::string_view name, const void* data, size_t bytes);

  // All tensors must be complete. Afterwards the file has its name and is on disk.
  FileDigest finish();

 private:
  void write_header();
  void skip_complete();

  AtomicFile file_;
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> names_;
  bool header_written_ = false;
  size_t current_ = 0;    // the tensor being written
  uint64_t written_ = 0;  // bytes of all tensors written so far
};

}  // namespace lathe
