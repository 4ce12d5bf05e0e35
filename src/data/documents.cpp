#include "src/data/documents.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/device/error.h"
#include "src/data/utf8.h"
#include "src/io/json.h"

namespace lathe {

static constexpr size_t kBlockBytes = 1 << 18;

DocumentReader::DocumentReader(std::vector<InputFile> files, DocumentFormat format)
    : files_(std::move(files)), format_(std::move(format)) {
  LATHE_CHECK(format_.separator.empty() || format_.jsonl_key.empty());
}

bool DocumentReader::open_next_file() {
  if (opened_ == files_.size()) return false;
  const auto& file = files_[opened_++];
  stream_ = std::ifstream(file.path, std::ios::binary);
  if (!stream_ || std::filesystem::is_directory(file.path)) {
    throw UserError("cannot read {}: {}; give the path of a text file", file.name,
                    stream_ ? "it is a directory" : std::strerror(errno));
  }
  buffer_.clear();
  begin_ = 0;
  offset_ = 0;
  line_ = 0;
  at_end_ = false;
  document_starts_ = true;
  fill();
  skip_byte_order_mark();
  return true;
}

void DocumentReader::skip_byte_order_mark() {
  if (rest().starts_with("\xFF\xFE") || rest().starts_with("\xFE\xFF")) {
    throw UserError("{} is not UTF-8, but UTF-16 or UTF-32; convert it, for example with iconv",
                    name());
  }
  const size_t mark = byte_order_mark(rest());
  begin_ += mark;
  offset_ += mark;
  byte_order_marks_ += mark > 0;
}

bool DocumentReader::fill() {
  buffer_.erase(0, std::exchange(begin_, 0));
  const size_t before = buffer_.size();
  buffer_.resize(before + kBlockBytes);
  stream_.read(buffer_.data() + before, kBlockBytes);
  const auto count = static_cast<size_t>(stream_.gcount());
  buffer_.resize(before + count);
  bytes_read_ += count;
  if (stream_.bad()) {
    throw UserError("cannot read {}: {}", name(), std::strerror(errno));
  }
  at_end_ = stream_.eof();
  return count > 0;
}

void DocumentReader::check_text(std::string_view text) const {
  const size_t valid = valid_utf8_prefix(text);
  if (const size_t nul = text.find('\0'); nul < valid) {
    throw UserError(
        "{} has a NUL at byte {}: it is UTF-16 or not text; convert it, or leave it out", name(),
        offset_ + nul);
  }
  if (valid == text.size()) return;
  throw UserError("{} is not UTF-8 at byte {} (0x{:02x}); convert it, for example with iconv",
                  name(), offset_ + valid, static_cast<unsigned char>(text[valid]));
}

// Hands out the first `bytes` of the buffer and drops `skip` more.
Piece DocumentReader::take(size_t bytes, size_t skip) {
  Piece piece{buffer_.substr(begin_, bytes), document_starts_, name(), offset_};
  check_text(piece.text);
  begin_ += bytes + skip;
  offset_ += bytes + skip;
  return piece;
}

std::optional<Piece> DocumentReader::next() {
  while (true) {
    if (at_end_ && rest().empty() && !open_next_file()) return std::nullopt;
    auto piece = format_.jsonl_key.empty() ? next_text() : next_line();
    if (piece && !piece->text.empty()) return piece;
  }
}

// Up to the next separator, or as much as is safe to hand out before a separator that may be
// incomplete.
std::optional<Piece> DocumentReader::next_text() {
  if (!at_end_ && rest().size() < kBlockBytes) fill();
  const std::string& separator = format_.separator;
  const size_t found = separator.empty() ? std::string_view::npos : rest().find(separator);
  if (found != std::string_view::npos) {
    Piece piece = take(found, separator.size());
    document_starts_ = true;
    return piece;
  }
  size_t ready = rest().size();
  if (!at_end_) {
    if (!separator.empty()) ready -= std::min(ready, separator.size() - 1);
    ready -= incomplete_utf8_tail(rest().substr(0, ready));
  }
  Piece piece = take(ready, 0);
  if (!piece.text.empty()) document_starts_ = false;
  return piece;
}

std::optional<Piece> DocumentReader::next_line() {
  size_t end = rest().find('\n');
  while (end == std::string_view::npos && !at_end_) {
    const size_t searched = rest().size();
    fill();
    end = rest().find('\n', searched);
  }
  const bool last = end == std::string_view::npos;
  const Piece line = take(last ? rest().size() : end, last ? 0 : 1);
  ++line_;
  if (line.text.find_first_not_of(" \t\r") == std::string::npos) return std::nullopt;
  const std::string name = fmt::format("{} line {}", line.source, line_);
  nlohmann::json object;
  try {
    object = parse_json(line.text);
  } catch (const nlohmann::json::exception&) {
    throw UserError("{} is not valid JSON; give one object per line", name);
  }
  const auto& key = format_.jsonl_key;
  if (!object.is_object() || !object.contains(key) || !object[key].is_string()) {
    throw UserError("{} has no text under \"{}\"; name the right key with --jsonl-key", name, key);
  }
  return Piece{object[key].get<std::string>(), true, name, 0};
}

}  // namespace lathe
