#include "src/data/char_tokenizer.h"

#include <algorithm>

#include "kernels/device/error.h"
#include "src/data/bpe.h"
#include "src/data/shard.h"
#include "src/data/utf8.h"
#include "src/io/json.h"

namespace lathe {

namespace {

constexpr int32_t kCodePoints = 0x110000;

class CharEncoder : public Encoder {
 public:
  explicit CharEncoder(const std::vector<int32_t>& id_of) : id_of_(id_of) {}

  void encode(std::string_view text, std::vector<int32_t>& ids) override {
    for (size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text.substr(at));
      if (c.value < 0) throw UserError("the text is not UTF-8 at byte {}; convert it", at);
      const auto place = static_cast<size_t>(c.value);
      const int32_t id = place < id_of_.size() ? id_of_[place] : -1;
      if (id < 0) throw UnknownCharacter("the text", c.value, at);
      ids.push_back(id);
      at += static_cast<size_t>(c.length);
    }
  }

 private:
  const std::vector<int32_t>& id_of_;
};

class CharTokenizer : public Tokenizer {
 public:
  explicit CharTokenizer(const std::vector<int32_t>& code_points) {
    id_of_.assign(static_cast<size_t>(*std::ranges::max_element(code_points)) + 1, -1);
    for (int32_t c : code_points) {
      id_of_[static_cast<size_t>(c)] = static_cast<int32_t>(tokens_.size());
      tokens_.emplace_back();
      append_utf8(c, tokens_.back());
    }
  }

  std::string_view kind() const override { return "char"; }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> end_of_text() const override { return std::nullopt; }
  std::string_view token(int32_t id) const override {
    LATHE_CHECK(id >= 0 && id < vocab_size(), "token {} of {}", id, vocab_size());
    return tokens_[static_cast<size_t>(id)];
  }
  std::unique_ptr<Encoder> encoder(SpecialTokens /*special*/) const override {
    return std::make_unique<CharEncoder>(id_of_);
  }
  size_t safe_cut(std::string_view text) const override { return text.size(); }
  std::string to_json() const override {
    auto vocabulary = nlohmann::json::object();
    for (size_t id = 0; id < tokens_.size(); ++id) vocabulary[tokens_[id]] = id;
    const auto none = nlohmann::json::array();
    return hugging_face_json(std::move(vocabulary), none, none, nullptr, {{"type", "Fuse"}});
  }

 private:
  std::vector<std::string> tokens_;
  std::vector<int32_t> id_of_;  // by code point, -1 where not in the vocabulary
};

}  // namespace

std::unique_ptr<Tokenizer> make_char_tokenizer(std::vector<int32_t> code_points,
                                               const std::string& source) {
  std::sort(code_points.begin(), code_points.end());
  code_points.erase(std::unique(code_points.begin(), code_points.end()), code_points.end());
  return char_tokenizer_by_id(code_points, source);
}

std::unique_ptr<Tokenizer> char_tokenizer_by_id(const std::vector<int32_t>& code_points,
                                                const std::string& source) {
  if (code_points.empty()) {
    throw UserError("{} holds no characters; give a text that is not empty", source);
  }
  if (code_points.size() > static_cast<size_t>(kMaxVocabSize)) {
    throw UserError(
        "{} holds {} different characters, but 16-bit tokens allow at most {}; "
        "use --tokenizer gpt2",
        source, code_points.size(), kMaxVocabSize);
  }
  const auto [least, largest] = std::ranges::minmax_element(code_points);
  LATHE_CHECK(*least >= 0 && *largest < kCodePoints, "U+{:04X} .. U+{:04X}", *least, *largest);
  return std::make_unique<CharTokenizer>(code_points);
}

std::unique_ptr<Tokenizer> parse_char_tokenizer(const nlohmann::json& json,
                                                const std::string& name) {
  if (!json.contains("version") || json["version"] != 1) {
    throw UserError(
        "{} has an unknown version of the character tokenizer, only 1 is known; "
        "make the data again with prepare",
        name);
  }
  if (!json.contains("characters") || !json["characters"].is_string()) {
    throw UserError("{} lacks its \"characters\"; recreate the data with prepare", name);
  }
  const auto& text = json["characters"].get_ref<const std::string&>();
  std::vector<int32_t> code_points;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(std::string_view(text).substr(at));
    if (c.value < 0 || (!code_points.empty() && c.value <= code_points.back())) {
      throw UserError(
          "{}: \"characters\" does not ascend at byte {}; "
          "make the data again with prepare",
          name, at);
    }
    code_points.push_back(c.value);
    at += static_cast<size_t>(c.length);
  }
  return make_char_tokenizer(std::move(code_points), name);
}

}  // namespace lathe
