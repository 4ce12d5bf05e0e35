// Tokenizers: text to token ids and back. Two kinds: one token for each character, and
// byte-level BPE (Radford et al., 2019), exactly as in OpenAI's encoder.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/error.h"

namespace lathe {

// The vocabulary lacks a character.
struct UnknownCharacter : UserError {
  UnknownCharacter(const std::string& source, int32_t code_point, uint64_t byte);
  int32_t code_point;
  uint64_t byte;  // its place in the source
};

// How to read a special token that is spelled out in a text ("<|endoftext|>").
enum class SpecialTokens {
  as_text,    // as its characters, like OpenAI's encoder: for data, which strangers wrote
  as_tokens,  // as the token, like Hugging Face's: for what the user wrote, such as a prompt
};

// Encodes for one thread; may keep a cache of words.
class Encoder {
 public:
  virtual ~Encoder() = default;

  // Appends the ids of `text`. Added tokens that are not special match in any text. Any code point
  // is legal, even U+0000. Throws UserError with the byte offset on invalid UTF-8, and
  // UnknownCharacter if a character vocabulary lacks a character.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) = 0;
};

// Immutable, and safe to share between threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string_view kind() const = 0;  // "char" or "bpe"
  virtual int32_t vocab_size() const = 0;     // at most 65536
  // The token put between documents, if there is one.
  virtual std::optional<int32_t> end_of_text() const = 0;
  // The bytes of a token; a BPE token may hold part of a character. CheckError if the id is out of
  // range.
  virtual std::string_view token(int32_t id) const = 0;
  virtual std::unique_ptr<Encoder> encoder(SpecialTokens special) const = 0;
  // The largest cut <= text.size() such that, whatever text `more` follows, encode(text[0, cut)) +
  // encode(text[cut, ...) + more) equals encode(text + more), with special tokens as text; 0 if
  // there is none. `text` must be valid UTF-8.
  virtual size_t safe_cut(std::string_view text) const = 0;
  // The content of tokenizer.json, in Hugging Face's format. A character tokenizer is a BPE without
  // merges.
  virtual std::string to_json() const = 0;

  std::vector<int32_t> encode(std::string_view text,
                              SpecialTokens special = SpecialTokens::as_text) const;
  // The tokens' bytes, unchanged: not valid UTF-8 if the ids do not come from a valid text.
  std::string decode(std::span<const int32_t> ids) const;
};

// Turns a stream of tokens into valid UTF-8: holds a character back until its last byte arrives,
// and replaces invalid bytes by U+FFFD, like OpenAI's decoder.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::string next(int32_t id);  // what can be printed now, possibly nothing
  std::string finish();          // U+FFFD for a character that was never completed

 private:
  const Tokenizer& tokenizer_;
  std::string held_;
};

// One token for each code point; the id is its index in ascending order. Throws UserError that
// names `source`, the text or file, if there are none or more than 65536.
std::unique_ptr<Tokenizer> make_char_tokenizer(std::vector<int32_t> code_points,
                                               const std::string& source);

// Whether both turn every text into the same tokens and every token into the same text: vocabulary,
// merges and added tokens are equal, whatever files they came from.
bool same_tokens(const Tokenizer& a, const Tokenizer& b);

// Opens a tokenizer from a data directory, a directory or a file:
//   tokenizer.json             written by prepare (either kind), or Hugging Face's byte-level BPE
//   encoder.json + vocab.bpe   OpenAI's
//   vocab.json + merges.txt    Hugging Face's other layout
// A directory is searched in this order; either file of a pair stands for both. Throws UserError if
// there is none, or if it is damaged or of another kind.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

// Whether load_tokenizer would find anything in this directory.
bool has_tokenizer(const std::filesystem::path& directory);

// Writes directory/tokenizer.json, atomically.
void save_tokenizer(const Tokenizer& tokenizer, const std::filesystem::path& directory);

// The parsers behind load_tokenizer; errors use `name` as the file.
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json, const std::string& name);
std::unique_ptr<Tokenizer> parse_bpe_files(std::string_view vocabulary_json,
                                           std::string_view merges, const std::string& name);

}  // namespace lathe
