// The files of byte-level BPE tokenizers: OpenAI's, and Hugging Face's two layouts.
#include <nlohmann/json.hpp>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/data/bpe.h"

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
          "{} gives the token {} no whole number as its id; "
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

// Refuses everything in tokenizer.json that would make it encode otherwise than GPT-2's.
void require_gpt2_kind(const json& file, const std::string& name) {
  const auto require = [&](bool condition, std::string_view what) {
    if (condition) return;
    throw UserError("{} is another kind of tokenizer ({}); give GPT-2's byte-level BPE", name,
                    what);
  };
  require(file.contains("model") && file["model"].is_object(), "it has no model");
  const json& model = file["model"];
  require(absent_or(model, "type", "BPE"), "its model is not BPE");
  require(model.contains("vocab") && model.contains("merges"), "it has no vocabulary and merges");
  require(absent_or(model, "continuing_subword_prefix", ""), "it has a continuing_subword_prefix");
  require(absent_or(model, "end_of_word_suffix", ""), "it has an end_of_word_suffix");
  require(absent_or(model, "byte_fallback", false), "it has byte_fallback");
  require(absent_or(model, "ignore_merges", false), "it has ignore_merges");
  require(absent_or(model, "dropout", 0.0), "it has dropout");
  require(absent_or(file, "normalizer", nullptr), "it has a normalizer");
  require(file.contains("pre_tokenizer") && file["pre_tokenizer"].is_object(),
          "it has no pre_tokenizer");
  const json& pre = file["pre_tokenizer"];
  require(pre.contains("type") && pre["type"] == "ByteLevel", "its pre_tokenizer is not ByteLevel");
  require(pre.contains("add_prefix_space") && pre["add_prefix_space"] == false,
          "it has add_prefix_space");
  require(absent_or(pre, "use_regex", true), "its pre_tokenizer does not use GPT-2's expression");
}

std::vector<std::pair<std::string, int64_t>> parse_special(const json& file,
                                                           const std::string& name) {
  std::vector<std::pair<std::string, int64_t>> special;
  if (!file.contains("added_tokens") || file["added_tokens"].is_null()) return special;
  const json& list = file["added_tokens"];
  if (!list.is_array()) throw UserError("{}: added_tokens is no list", name);
  for (const json& token : list) {
    if (!token.is_object() || !token.contains("id") || !token["id"].is_number_integer() ||
        !token.contains("content") || !token["content"].is_string()) {
      throw UserError(
          "{} holds an added token without id and content; "
          "give an undamaged tokenizer",
          name);
    }
    special.emplace_back(token["content"].get<std::string>(), token["id"].get<int64_t>());
  }
  return special;
}

}  // namespace

std::unique_ptr<Tokenizer> parse_hugging_face_tokenizer(const json& file, const std::string& name) {
  require_gpt2_kind(file, name);
  BpeTokenizer::Parts parts;
  parts.vocabulary = parse_vocabulary(file["model"]["vocab"], name);
  parts.merges = parse_merges(file["model"]["merges"], name);
  parts.special = parse_special(file, name);
  return std::make_unique<BpeTokenizer>(parts, name);
}

std::unique_ptr<Tokenizer> parse_bpe_files(std::string_view vocabulary_json,
                                           std::string_view merges, const std::string& name) {
  BpeTokenizer::Parts parts;
  try {
    parts.vocabulary = parse_vocabulary(json::parse(vocabulary_json), name);
  } catch (const json::exception& error) {
    throw UserError("{} is no valid JSON ({}); give an undamaged tokenizer", name,
                    shortened(error.what(), kMostQuotedBytes));
  }
  for (bool first = true; !merges.empty(); first = false) {
    const size_t end = std::min(merges.find('\n'), merges.size());
    const std::string_view line = merges.substr(0, end);
    merges.remove_prefix(std::min(end + 1, merges.size()));
    if (line.empty() || (first && line.starts_with("#version"))) continue;
    parts.merges.push_back(parse_merge(line, name));
  }
  return std::make_unique<BpeTokenizer>(parts, name);
}

std::string BpeTokenizer::to_json() const {
  json added = json::array();
  for (int32_t id : special_) {
    added.push_back({{"id", id},
                     {"content", tokens_[static_cast<size_t>(id)]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
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
  const json file = {
      {"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
      {"added_tokens", added},     {"normalizer", nullptr}, {"pre_tokenizer", byte_level},
      {"post_processor", nullptr}, {"decoder", byte_level}, {"model", model}};
  return file.dump() + "\n";
}

}  // namespace lathe
