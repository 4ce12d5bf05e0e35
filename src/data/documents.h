// Text files as a stream of documents, read in pieces of bounded size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

// Where documents end, besides at the end of each file.
struct DocumentFormat {
  std::string separator;  // this text, which is dropped; empty: no separator
  std::string jsonl_key;  // if not empty: each line is a JSON object, its text under this key
};

struct InputFile {
  std::filesystem::path path;
  std::string name;  // used in errors
};

struct Piece {
  std::string text;      // valid UTF-8, whole characters
  bool starts_document;  // false: continues the previous piece's document
  std::string source;    // used in errors: the file, or the file and line of JSON
  uint64_t offset;       // in the source, of the first byte
};

// Reads the files in order. Throws UserError, naming file and byte offset, if a file cannot be read
// or contains invalid UTF-8 or a NUL (which JSON may escape). Skips empty documents and a byte
// order mark at the start of a file.
class DocumentReader {
 public:
  DocumentReader(std::vector<InputFile> files, DocumentFormat format);

  std::optional<Piece> next();
  uint64_t bytes_read() const { return bytes_read_; }
  int64_t byte_order_marks() const { return byte_order_marks_; }

 private:
  bool fill();  // reads more; false at the end of the last file
  bool open_next_file();
  std::optional<Piece> next_text();
  std::optional<Piece> next_line();
  Piece take(size_t bytes, size_t skip);
  void skip_byte_order_mark();
  void check_text(std::string_view text) const;
  const std::string& name() const { return files_[opened_ - 1].name; }

  std::vector<InputFile> files_;
  DocumentFormat format_;
  size_t opened_ = 0;
  std::ifstream stream_;
  std::string_view rest() const { return std::string_view(buffer_).substr(begin_); }

  std::string buffer_;  // text of the file; from begin_ on not yet handed out
  size_t begin_ = 0;
  uint64_t offset_ = 0;  // in the file, of the byte at begin_
  uint64_t bytes_read_ = 0;
  int64_t byte_order_marks_ = 0;  // skipped
  int64_t line_ = 0;
  bool at_end_ = true;           // of the current file
  bool document_starts_ = true;  // at the byte at begin_
};

}  // namespace lathe
