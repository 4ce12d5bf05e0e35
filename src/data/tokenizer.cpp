#include "src/data/tokenizer.h"

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/data/bpe.h"
#include "src/data/char_tokenizer.h"
#include "src/data/utf8.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/strict_json.h"

namespace lathe {

namespace fs = std::filesystem;

UnknownCharacter::UnknownCharacter(const std::string& source, int32_t code, uint64_t at)
    : UserError(
          "{} has U+{:04X} at byte {}, which the vocabulary lacks; "
          "use characters of the text that the vocabulary was made from",
          source, code, at),
      code_point(code),
      byte(at) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<int32_t> ids;
  encoder(special)->encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text += token(id);
  return text;
}

bool same_tokens(const Tokenizer& a, const Tokenizer& b) {
  if (a.kind() != b.kind() || a.vocab_size() != b.vocab_size()) return false;
  for (int32_t id = 0; id < a.vocab_size(); ++id) {
    if (a.token(id) != b.token(id)) return false;
  }
  const auto* bpe_a = dynamic_cast<const BpeTokenizer*>(&a);
  const auto* bpe_b = dynamic_cast<const BpeTokenizer*>(&b);
  return !bpe_a || !bpe_b || bpe_a->same_rules(*bpe_b);
}

static constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Moves complete characters from `held` to the result; `last`: no more input will come.
static std::string printable(std::string& held, bool last) {
  std::string out;
  const size_t keep = last ? 0 : incomplete_utf8_tail(held);
  std::string_view rest = std::string_view(held).substr(0, held.size() - keep);
  while (!rest.empty()) {
    const size_t valid = valid_utf8_prefix(rest);
    out += rest.substr(0, valid);
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    out += kReplacement;
    rest.remove_prefix(1);
  }
  held.erase(0, held.size() - keep);
  return out;
}

std::string StreamDecoder::next(int32_t id) {
  held_ += tokenizer_.token(id);
  return printable(held_, false);
}

std::string StreamDecoder::finish() {
  return printable(held_, true);
}

static constexpr uint64_t kMaxFileBytes = 256 << 20;  // far more than 65536 tokens take

static std::unique_ptr<Tokenizer> load_pair(const fs::path& vocabulary, const fs::path& merges) {
  return parse_bpe_files(read_whole_file(vocabulary, kMaxFileBytes),
                         read_whole_file(merges, kMaxFileBytes), vocabulary.string());
}

bool has_tokenizer(const fs::path& directory) {
  for (const char* file :
       {"tokenizer.json", "encoder.json", "vocab.bpe", "vocab.json", "merges.txt"}) {
    if (is_there(directory / file)) return true;
  }
  return false;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    throw UserError(
        "there is no tokenizer at {}; give a directory with tokenizer.json, "
        "encoder.json + vocab.bpe or vocab.json + merges.txt, or one of these files",
        path.string());
  }
  const bool is_directory = fs::is_directory(status);
  const fs::path directory = is_directory ? path : path.parent_path();
  const std::string file = is_directory ? "" : path.filename().string();
  if (is_directory && fs::exists(path / "tokenizer.json", error)) {
    return load_tokenizer(path / "tokenizer.json");
  }
  for (const auto& [vocabulary, merges] :
       {std::pair{"encoder.json", "vocab.bpe"}, std::pair{"vocab.json", "merges.txt"}}) {
    const bool named = file == vocabulary || file == merges;
    const bool found =
        is_directory && (fs::exists(path / vocabulary, error) || fs::exists(path / merges, error));
    if (named || found) return load_pair(directory / vocabulary, directory / merges);
  }
  if (is_directory) {
    throw UserError(
        "{} holds no tokenizer.json, encoder.json + vocab.bpe or "
        "vocab.json + merges.txt; give the directory or file of a tokenizer",
        path.string());
  }
  return parse_tokenizer_json(read_whole_file(path, kMaxFileBytes), path.string());
}

void save_tokenizer(const Tokenizer& tokenizer, const fs::path& directory) {
  write_file(directory / "tokenizer.json", tokenizer.to_json());
}

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view text, const std::string& name) {
  const nlohmann::json json = parse_strict_json(text, name, kMaxJsonDepth);
  if (!json.is_object()) throw UserError("{} holds no JSON object; give a tokenizer", name);
  if (json.contains("type") && json["type"] == "char") return parse_char_tokenizer(json, name);
  return parse_hugging_face_tokenizer(json, name);
}

}  // namespace lathe
