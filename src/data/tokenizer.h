// Tokenizers: text to token ids and back. Two kinds: one token for each character of a text, and
// the byte-level BPE of GPT-2 (Radford et al., 2019), exactly as OpenAI's encoder.py does it.
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

// A character that the vocabulary lacks.
struct UnknownCharacter : UserError {
  UnknownCharacter(const std::string& source, int32_t code_point, uint64_t byte);
  int32_t code_point;
  uint64_t byte;  // its place in the source
};

// What a special token is that is written out in a text ("<|endoftext|>").
enum class SpecialTokens {
  as_text,    // its characters, as for OpenAI's encoder: in data, which strangers wrote
  as_tokens,  // the token, as for Hugging Face's: in what the user of a program wrote, like a
              // prompt
};

// Encodes for one thread: may keep a cache of words.
class Encoder {
 public:
  virtual ~Encoder() = default;

  // Appends the ids of text. Added tokens that are not special are matched in any text. Any code
  // point is legal, U+0000 too. Throws UserError at invalid UTF-8, naming the byte offset, and
  // UnknownCharacter where the vocabulary of characters lacks one.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) = 0;
};

// Immutable, and safe to share between threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string_view kind() const = 0;  // "char" or "bpe"
  virtual int32_t vocab_size() const = 0;     // at most 65536
  // The token that stands between documents, where there is one.
  virtual std::optional<int32_t> end_of_text() const = 0;
  // The bytes of a token; a BPE token may hold part of a character. CheckError for an id outside.
  virtual std::string_view token(int32_t id) const = 0;
  virtual std::unique_ptr<Encoder> encoder(SpecialTokens special) const = 0;
  // The largest cut <= text.size() for which encode(text[0, cut)) + encode(text[cut, ...) + more)
  // is encode(text + more) whatever follows, special tokens being text; 0 where there is none. text
  // is valid UTF-8.
  virtual size_t safe_cut(std::string_view text) const = 0;
  // The content of tokenizer.json, in Hugging Face's format. Characters are a BPE without merges.
  virtual std::string to_json() const = 0;

  std::vector<int32_t> encode(std::string_view text,
                              SpecialTokens special = SpecialTokens::as_text) const;
  // The tokens' bytes, as they are: not valid UTF-8 where ids do not come from a valid text.
  std::string decode(std::span<const int32_t> ids) const;
};

// Turns a stream of tokens into valid UTF-8: holds back a character until its last byte is there
// and replaces invalid bytes by U+FFFD, as OpenAI's decoder does.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::string next(int32_t id);  // what can be printed now, maybe nothing
  std::string finish();          // U+FFFD for a character that was never completed

 private:
  const Tokenizer& tokenizer_;
  std::string held_;
};

// One token for each code point; ids are the places in the ascending list of code points.
// `source` names the text or file in the error for more than 65536 of them or none.
std::unique_ptr<Tokenizer> make_char_tokenizer(std::vector<int32_t> code_points,
                                               const std::string& source);

// Whether the two make the same tokens of every text and the same text of every token: vocabulary,
// merges and added tokens are equal, whatever files they came from.
bool same_tokens(const Tokenizer& a, const Tokenizer& b);

// Opens a tokenizer from a data directory, a directory or a file:
//   tokenizer.json             what prepare wrote (either kind), or Hugging Face's of GPT-2's kind
//   encoder.json + vocab.bpe   OpenAI's
//   vocab.json + merges.txt    Hugging Face's other layout
// A directory is searched in this order; of a pair, either file names both. Throws UserError where
// there is none, or it is damaged or of another kind.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

// Whether load_tokenizer would find anything in this directory.
bool has_tokenizer(const std::filesystem::path& directory);

// Writes directory/tokenizer.json, atomically.
void save_tokenizer(const Tokenizer& tokenizer, const std::filesystem::path& directory);

// The parsers behind load_tokenizer; `name` stands for the file in errors.
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json, const std::string& name);
std::unique_ptr<Tokenizer> parse_bpe_files(std::string_view vocabulary_json,
                                           std::string_view merges, const std::string& name);

}  // namespace lathe
