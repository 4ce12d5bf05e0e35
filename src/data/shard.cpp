#include "src/data/shard.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "kernels/device/error.h"

namespace lathe {

static_assert(std::endian::native == std::endian::little,
              "shards are read and written as they are");

namespace {

class MappedShardFile final : public ShardFile {
 public:
  explicit MappedShardFile(const std::filesystem::path& path) : file_(path) {}
  uint64_t size() const override { return file_.size(); }
  void read(uint64_t offset, void* out, size_t bytes) const override {
    file_.read(offset, out, bytes);
  }

 private:
  MappedFile file_;
};

}  // namespace

std::unique_ptr<ShardFile> map_shard_file(const std::filesystem::path& path) {
  return std::make_unique<MappedShardFile>(path);
}

Shard::Shard(const std::filesystem::path& path, const OpenShardFile& open)
    : path_(path), file_(open(path)) {
  const std::string name = path.string();
  if (file_->size() < kShardHeaderBytes) {
    throw UserError(
        "{} is not a token shard: it has {} bytes, but its header alone takes {}; "
        "recreate it with prepare",
        name, file_->size(), kShardHeaderBytes);
  }
  std::array<int32_t, 3> header;
  file_->read(0, header.data(), sizeof header);
  if (header[0] != kShardMagic) {
    throw UserError(
        "{} is not a token shard: it starts with {} at byte 0, not {}; "
        "recreate it with prepare",
        name, header[0], kShardMagic);
  }
  if (header[1] != kShardVersion) {
    throw UserError(
        "{} has shard version {} at byte 4, but only {} is known; "
        "recreate it with prepare",
        name, header[1], kShardVersion);
  }
  if (header[2] < 0) {
    throw UserError("{} claims at byte 8 to have {} tokens; recreate it with prepare", name,
                    header[2]);
  }
  size_ = header[2];
  const uint64_t expected = kShardHeaderBytes + 2 * static_cast<uint64_t>(size_);
  if (file_->size() != expected) {
    throw UserError(
        "{} is {}: {} tokens (byte 8) take {} bytes, but it has {}; "
        "copy it again or recreate it with prepare",
        name, file_->size() < expected ? "truncated" : "too long", size_, expected, file_->size());
  }
}

void Shard::copy(int64_t first, int64_t count, int32_t* out, int32_t vocab_size) const {
  LATHE_CHECK(first >= 0 && count >= 0 && first + count <= size_, "{} + {} of {}", first, count,
              size_);
  // Reads into the upper half of `out` and expands from there: each write hits only tokens already
  // read.
  auto* tokens = reinterpret_cast<char*>(out + count) - count * int64_t{sizeof(uint16_t)};
  if (count > 0) {
    file_->read(kShardHeaderBytes + 2 * static_cast<uint64_t>(first), tokens,
                static_cast<size_t>(count) * sizeof(uint16_t));
  }
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t token = 0;
    std::memcpy(&token, tokens + i * int64_t{sizeof token}, sizeof token);
    out[i] = token;
    largest = std::max(largest, out[i]);
  }
  if (vocab_size == 0 || largest < vocab_size) return;
  const int64_t bad =
      std::find_if(out, out + count, [=](int32_t t) { return t >= vocab_size; }) - out;
  throw UserError(
      "{} holds token {} at byte {}, but the vocabulary has {}; "
      "use the data's own vocabulary size or recreate the data with prepare",
      path().string(), out[bad], kShardHeaderBytes + 2 * static_cast<uint64_t>(first + bad),
      vocab_size);
}

// The name without trailing digits and underscores if `split` is one of its parts, else "".
static std::string data_set_of(const std::filesystem::path& file, const std::string& split) {
  const bool hidden = file.filename().string().starts_with('.');  // macOS: ._train_000000.bin
  if (hidden || file.extension() != ".bin") return "";
  std::string stem = file.stem().string();
  if (("_" + stem + "_").find("_" + split + "_") == std::string::npos) return "";
  while (!stem.empty() &&
         (std::isdigit(static_cast<unsigned char>(stem.back())) || stem.back() == '_')) {
    stem.pop_back();
  }
  return stem;
}

std::vector<std::filesystem::path> find_shards(const std::filesystem::path& directory,
                                               const std::string& split) {
  std::error_code error;
  if (std::filesystem::exists(directory / kReplacingMark, error)) {
    throw UserError(
        "{} may hold old and new data mixed: prepare was stopped while it replaced them, or is "
        "doing so now; recreate the data with prepare --force",
        directory.string());
  }
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (!data_set_of(it->path(), split).empty()) files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TokenSet::TokenSet(const std::filesystem::path& directory, const std::string& split,
                   int32_t vocab_size, const OpenShardFile& open)
    : vocab_size_(vocab_size) {
  std::error_code error;
  std::filesystem::directory_iterator readable(directory, error);
  if (error) {
    throw UserError("cannot read the data directory {}: {}; make it with prepare --out {}",
                    directory.string(), error.message(), directory.string());
  }
  const auto files = find_shards(directory, split);
  if (files.empty()) {
    throw UserError("{} holds no {}_*.bin; make the data with prepare --out {}", directory.string(),
                    split, directory.string());
  }
  for (const auto& file : files) {
    if (data_set_of(file, split) != data_set_of(files[0], split)) {
      throw UserError("{} holds more than one data set ({} and {}); give each its own directory",
                      directory.string(), files[0].filename().string(), file.filename().string());
    }
    shards_.emplace_back(file, open);
    starts_.push_back(starts_.back() + shards_.back().size());
  }
}

void TokenSet::copy(int64_t first, int64_t count, int32_t* out) const {
  LATHE_CHECK(first >= 0 && count >= 0 && first + count <= size(), "{} + {} of {}", first, count,
              size());
  auto shard = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) -
                                   starts_.begin() - 1);
  for (; count > 0; ++shard) {
    const int64_t local = first - starts_[shard];
    const int64_t here = std::min(count, shards_[shard].size() - local);
    shards_[shard].copy(local, here, out, vocab_size_);
    first += here;
    out += here;
    count -= here;
  }
}

ShardWriter::ShardWriter(std::filesystem::path directory, std::string split, int64_t shard_tokens)
    : directory_(std::move(directory)), split_(std::move(split)), shard_tokens_(shard_tokens) {
  LATHE_CHECK(shard_tokens > 0 && shard_tokens <= INT32_MAX, "{}", shard_tokens);
}

ShardWriter::~ShardWriter() {
  if (file_) ::unlink(partial().c_str());
}

void ShardWriter::open() {
  files_.push_back(directory_ / fmt::format("{}_{:06}.bin", split_, files_.size()));
  file_ = FileHandle(::open(partial().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file_) throw_io_error("write", files_.back(), errno);
  const std::array<int32_t, kShardHeaderBytes / 4> header{};
  write_all(file_.get(), header.data(), sizeof header, partial());
  in_shard_ = 0;
}

// The number of tokens is known only now, so AtomicFile, which writes from start to end, does not
// fit.
void ShardWriter::close() {
  const std::array<int32_t, 3> header{kShardMagic, kShardVersion, static_cast<int32_t>(in_shard_)};
  if (::lseek(file_.get(), 0, SEEK_SET) != 0) throw_io_error("write", partial(), errno);
  write_all(file_.get(), header.data(), sizeof header, partial());
  if (::fsync(file_.get()) != 0) throw_io_error("write", partial(), errno);
  rename_path(partial(), files_.back());
  file_ = FileHandle();
  sync_directory(parent_of(files_.back()));
}

void ShardWriter::append(std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    if (!file_) open();
    const auto count = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(tokens.size()), shard_tokens_ - in_shard_));
    buffer_.clear();
    for (int32_t token : tokens.first(count)) {
      LATHE_CHECK(token >= 0 && token < kMaxVocabSize, "token {}", token);
      buffer_.push_back(static_cast<uint16_t>(token));
    }
    write_all(file_.get(), buffer_.data(), buffer_.size() * sizeof(uint16_t), partial());
    in_shard_ += static_cast<int64_t>(count);
    total_ += static_cast<int64_t>(count);
    if (in_shard_ == shard_tokens_) close();
    tokens = tokens.subspan(count);
  }
}

void ShardWriter::finish() {
  if (file_) close();
}

}  // namespace lathe
