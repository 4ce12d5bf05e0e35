// The files of byte-level BPE tokenizers: OpenAI's, and Hugging Face's two layouts.

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/data/bpe.h"
#include "src/data/char_tokenizer.h"
#include "src/data/utf8.h"
#include "src/io/json.h"
#include "src/io/strict_json.h"

namespace lathe {

namespace {

using nlohmann::json;

std::vector<std::pair<std::string, int64_t>> parse_vocabulary(const json& object,
                                                              const std::string& name) {
  if (!object.is_object()) throw UserError("{} holds no vocabulary; give a BPE tokenizer", name);
  std::vector<std::pair<std::string, int64_t>> vocabulary;
  for (const auto& [token, id] : object.items()) {
    if (!id.is_number_integer()) {
      throw UserError(
          "{} gives the token {} an id that is not a whole number; "
          "give an undamaged tokenizer",
          name, shortened(token, kMostQuotedBytes));
    }
    vocabulary.emplace_back(token, id.get<int64_t>());
  }
  return vocabulary;
}

std::pair<std::string, std::string> parse_merge(std::string_view line, const std::string& name) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos) {
    throw UserError(
        "{}: the merge \"{}\" is not two tokens with a space between; "
        "give an undamaged tokenizer",
        name, shortened(line, kMostQuotedBytes));
  }
  return {std::string(line.substr(0, space)), std::string(line.substr(space + 1))};
}

std::vector<std::pair<std::string, std::string>> parse_merges(const json& list,
                                                              const std::string& name) {
  if (!list.is_array()) throw UserError("{} holds no list of merges; give a BPE tokenizer", name);
  std::vector<std::pair<std::string, std::string>> merges;
  for (const json& merge : list) {
    if (merge.is_string()) {
      merges.push_back(parse_merge(merge.get_ref<const std::string&>(), name));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      throw UserError("{} holds a merge that is not two tokens; give an undamaged tokenizer", name);
    }
  }
  return merges;
}

bool absent_or(const json& object, const char* key, const json& value) {
  return !object.contains(key) || object[key].is_null() || object[key] == value;
}

// Whether the post-processor leaves the tokens unchanged. transformers writes a template that
// contains only the text.
bool adds_no_tokens(const json& file) {
  if (absent_or(file, "post_processor", nullptr)) return true;
  const json& post = file["post_processor"];
  if (!post.is_object() || !post.contains("type")) return false;
  if (post["type"] == "ByteLevel") return true;
  return post["type"] == "TemplateProcessing" && post.contains("single") &&
         post["single"] == parse_json(R"([{"Sequence": {"id": "A", "type_id": 0}}])");
}

void require(bool condition, std::string_view what, const std::string& name) {
  if (condition) return;
  throw UserError("{} is another kind of tokenizer ({}); give GPT-2's byte-level BPE", name, what);
}

// Refuses everything in tokenizer.json that would make it encode differently from plain BPE.
void require_plain_bpe(const json& file, const std::string& name) {
  require(file.contains("model") && file["model"].is_object(), "it has no model", name);
  const json& model = file["model"];
  require(absent_or(model, "type", "BPE"), "its model is not BPE", name);
  require(model.contains("vocab") && model.contains("merges"), "it has no vocabulary and merges",
          name);
  require(absent_or(model, "continuing_subword_prefix", ""), "it has a continuing_subword_prefix",
          name);
  require(absent_or(model, "end_of_word_suffix", ""), "it has an end_of_word_suffix", name);
  require(absent_or(model, "byte_fallback", false), "it has byte_fallback", name);
  require(absent_or(model, "ignore_merges", false), "it has ignore_merges", name);
  require(absent_or(model, "dropout", 0.0), "it has dropout", name);
  require(absent_or(file, "normalizer", nullptr), "it has a normalizer", name);
  require(adds_no_tokens(file), "its post_processor adds tokens", name);
}

void require_gpt2_words(const json& file, const std::string& name) {
  require(file.contains("pre_tokenizer") && file["pre_tokenizer"].is_object(),
          "it has no pre_tokenizer", name);
  const json& pre = file["pre_tokenizer"];
  require(pre.contains("type") && pre["type"] == "ByteLevel", "its pre_tokenizer is not ByteLevel",
          name);
  require(pre.contains("add_prefix_space") && pre["add_prefix_space"] == false,
          "it has add_prefix_space", name);
  require(absent_or(pre, "use_regex", true), "its pre_tokenizer does not use GPT-2's expression",
          name);
}

AddedToken parse_added_token(const json& token, const std::string& name) {
  if (!token.is_object() || !token.contains("id") || !token["id"].is_number_integer() ||
      !token.contains("content") || !token["content"].is_string()) {
    throw UserError(
        "{} holds an added token without id and content; "
        "give an undamaged tokenizer",
        name);
  }
  const auto content = token["content"].get<std::string>();
  const auto flag = [&](const char* key, bool otherwise) {
    if (!token.contains(key)) return otherwise;
    if (token[key].is_boolean()) return token[key].get<bool>();
    throw UserError("{}: {} of the added token {} is neither true nor false", name, key,
                    json_quoted(content));
  };
  AddedToken added{.content = content,
                   .id = checked_id(token["id"].get<int64_t>(), content, name),
                   .special = flag("special", true),
                   .normalized = flag("normalized", false),
                   .lstrip = flag("lstrip", false),
                   .rstrip = flag("rstrip", false)};
  for (const auto& [key, wanted] : {std::pair{"single_word", flag("single_word", false)},
                                    std::pair{"lstrip", added.lstrip && !added.special},
                                    std::pair{"rstrip", added.rstrip && !added.special}}) {
    if (!wanted) continue;
    throw UserError(
        "{} has the added token {} with {}, which is not supported; give a tokenizer without it",
        name, json_quoted(content), key);
  }
  return added;
}

std::vector<AddedToken> parse_added_tokens(const json& file, const std::string& name) {
  std::vector<AddedToken> added;
  if (absent_or(file, "added_tokens", nullptr)) return added;
  const json& list = file["added_tokens"];
  if (!list.is_array()) throw UserError("{}: added_tokens is not a list", name);
  for (const json& token : list) added.push_back(parse_added_token(token, name));
  return added;
}

// What the character tokenizer writes: no merges, and no splitting into words.
bool is_of_characters(const json& file) {
  return absent_or(file, "pre_tokenizer", nullptr) && file["model"]["merges"] == json::array();
}

std::unique_ptr<Tokenizer> parse_characters(const json& file, const std::string& name) {
  const auto vocabulary = parse_vocabulary(file["model"]["vocab"], name);
  require(file.contains("decoder") && file["decoder"] == json{{"type", "Fuse"}},
          "it has no pre_tokenizer, and its decoder is not Fuse", name);
  const auto added = parse_added_tokens(file, name);
  if (!added.empty()) {
    throw UserError(
        "{} has the added token {}, which a character tokenizer cannot have; "
        "give a tokenizer without it",
        name, json_quoted(added[0].content));
  }
  std::vector<int32_t> code_points(vocabulary.size(), -1);  // by id
  for (const auto& [text, id] : vocabulary) {
    const CodePoint c = text.empty() ? CodePoint{-1, 0} : decode_utf8(text);
    require(c.value >= 0 && static_cast<size_t>(c.length) == text.size(),
            fmt::format("it has no merges, and {} is not one character", json_quoted(text)), name);
    if (id < 0 || id >= std::ssize(code_points) || code_points[static_cast<size_t>(id)] != -1) {
      throw UserError("{} has {} tokens, and {} has the id {}; give an undamaged tokenizer", name,
                      vocabulary.size(), json_quoted(text), id);
    }
    code_points[static_cast<size_t>(id)] = c.value;
  }
  return char_tokenizer_by_id(code_points, name);
}

}  // namespace

std::unique_ptr<Tokenizer> parse_hugging_face_tokenizer(const json& file, const std::string& name) {
  require_plain_bpe(file, name);
  if (is_of_characters(file)) return parse_characters(file, name);
  require_gpt2_words(file, name);
  BpeTokenizer::Parts parts;
  parts.vocabulary = parse_vocabulary(file["model"]["vocab"], name);
  parts.merges = parse_merges(file["model"]["merges"], name);
  parts.added = parse_added_tokens(file, name);
  return std::make_unique<BpeTokenizer>(parts, name);
}

std::unique_ptr<Tokenizer> parse_bpe_files(std::string_view vocabulary_json,
                                           std::string_view merges, const std::string& name) {
  BpeTokenizer::Parts parts;
  parts.vocabulary =
      parse_vocabulary(parse_strict_json(vocabulary_json, name, kMaxJsonDepth), name);
  merges.remove_prefix(byte_order_mark(merges));
  for (bool first = true; !merges.empty(); first = false) {
    const size_t end = std::min(merges.find('\n'), merges.size());
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(std::min(end + 1, merges.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);  // no token's name holds this character
    if (line.empty() || (first && line.starts_with("#version"))) continue;
    parts.merges.push_back(parse_merge(line, name));
  }
  return std::make_unique<BpeTokenizer>(parts, name);
}

std::string hugging_face_json(json vocabulary, json merges, json added_tokens,
                              const json& pre_tokenizer, const json& decoder) {
  const json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", std::move(vocabulary)},
                      {"merges", std::move(merges)}};
  const json file = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", std::move(added_tokens)},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", pre_tokenizer},
                     {"post_processor", nullptr},
                     {"decoder", decoder},
                     {"model", model}};
  return file.dump() + "\n";
}

std::string BpeTokenizer::to_json() const {
  json added = json::array();
  for (const AddedToken& token : added_.list()) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", false},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  json vocabulary = json::object();
  for (size_t id = 0; id < names_.size(); ++id) vocabulary[names_[id]] = id;
  json merges = json::array();
  for (const auto& [left, right] : merge_list_) {
    merges.push_back(names_[static_cast<size_t>(left)] + " " + names_[static_cast<size_t>(right)]);
  }
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return hugging_face_json(std::move(vocabulary), std::move(merges), std::move(added), byte_level,
                           byte_level);
}

}  // namespace lathe
