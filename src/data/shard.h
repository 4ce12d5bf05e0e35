// Token shards in llm.c's format: 256 little-endian int32 ([0] = 20240520, [1] = 1, [2] = number
// of tokens n, the rest 0), then n little-endian uint16 tokens; the file is exactly 1024 + 2 n
// bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/io/file.h"

namespace lathe {

inline constexpr int32_t kShardMagic = 20240520;
inline constexpr int32_t kShardVersion = 1;
inline constexpr size_t kShardHeaderBytes = 1024;
// A file in a data directory while its shards are being replaced.
inline constexpr const char* kReplacingMark = ".prepare.replacing";
inline constexpr int32_t kMaxVocabSize = 65536;  // tokens are 16 bits

// How a shard's bytes are read. Errors as in io/file.h.
class ShardFile {
 public:
  virtual ~ShardFile() = default;
  virtual uint64_t size() const = 0;  // bytes
  virtual void read(uint64_t offset, void* out, size_t bytes) const = 0;
};
using OpenShardFile = std::function<std::unique_ptr<ShardFile>(const std::filesystem::path&)>;
std::unique_ptr<ShardFile> map_shard_file(const std::filesystem::path& path);

// One shard. The constructor checks header and size, and throws UserError that names the file;
// copy() checks tokens against the vocabulary.
class Shard {
 public:
  explicit Shard(const std::filesystem::path& path, const OpenShardFile& open = map_shard_file);

  int64_t size() const { return size_; }  // tokens
  const std::filesystem::path& path() const { return path_; }

  // Writes tokens first .. first + count to `out`. Throws UserError that names the file and the
  // byte offset of a token >= vocab_size; 0 checks nothing.
  void copy(int64_t first, int64_t count, int32_t* out, int32_t vocab_size) const;

 private:
  std::filesystem::path path_;
  std::unique_ptr<ShardFile> file_;
  int64_t size_ = 0;
};

// All shards of one split of a data directory, read as one list of tokens.
class TokenSet {
 public:
  // Shards are the directory's .bin files whose name contains `split` ("train" or "val") as a part
  // between underscores (train_000000.bin; llm.c's fineweb_val_000000.bin), in order of their
  // names. Hidden files are ignored. Throws UserError if there are none, if one is damaged, if they
  // belong to more than one data set, or if prepare was stopped while it replaced them. vocab_size
  // is as in Shard::copy.
  TokenSet(const std::filesystem::path& directory, const std::string& split, int32_t vocab_size = 0,
           const OpenShardFile& open = map_shard_file);

  int64_t size() const { return starts_.back(); }  // tokens in all shards
  void copy(int64_t first, int64_t count, int32_t* out) const;
  const std::vector<Shard>& shards() const { return shards_; }

 private:
  std::vector<Shard> shards_;
  std::vector<int64_t> starts_{0};  // starts_[i]: index of the first token of shard i
  int32_t vocab_size_;
};

// The .bin files that TokenSet would open, sorted; empty if there are none. Throws UserError if
// kReplacingMark exists.
std::vector<std::filesystem::path> find_shards(const std::filesystem::path& directory,
                                               const std::string& split);

// Writes `split`_000000.bin, `split`_000001.bin, ... of at most shard_tokens tokens, each under a
// temporary name, fsynced and renamed. finish() completes the last one; without it, the unfinished
// shard leaves no file.
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path directory, std::string split,
              int64_t shard_tokens = 100'000'000);

  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // CheckError if a token is not in 0 .. 65535; UserError or CheckError as in io/file.h if the file
  // cannot be written.
  void append(std::span<const int32_t> tokens);
  void finish();
  int64_t tokens() const { return total_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  std::filesystem::path partial() const { return files_.back().string() + ".partial"; }
  void open();
  void close();

  std::filesystem::path directory_;
  std::string split_;
  int64_t shard_tokens_;
  FileHandle file_;  // of files_.back() + ".partial", while it is written
  std::vector<std::filesystem::path> files_;
  std::vector<uint16_t> buffer_;
  int64_t in_shard_ = 0;
  int64_t total_ = 0;
};

}  // namespace lathe
