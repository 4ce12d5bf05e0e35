// Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019): a word starts as its bytes; the
// neighbouring pair that is first in the list of merges is joined, until no pair is in the list.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/data/added_tokens.h"
#include "src/data/tokenizer.h"

namespace lathe {

// (left id, right id) -> rank and joined id: an open-addressing table.
class MergeTable {
 public:
  struct Merge {
    int32_t rank;
    int32_t joined;
  };
  explicit MergeTable(size_t merges);
  void insert(int32_t left, int32_t right, Merge merge);  // a later one replaces an earlier one
  const Merge* find(int32_t left, int32_t right) const;   // nullptr if absent

 private:
  struct Slot {
    uint32_t key;
    Merge merge;  // rank -1: empty
  };
  size_t slot_of(uint32_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }
  std::vector<Slot> slots_;
  int shift_;
};

class BpeTokenizer : public Tokenizer {
 public:
  // The content of a file before it is checked. Names are as in the files: bytes written as
  // printable characters (bpe.cpp).
  struct Parts {
    std::vector<std::pair<std::string, int64_t>> vocabulary;  // name, id
    std::vector<std::pair<std::string, std::string>> merges;  // in order of rank
    std::vector<AddedToken> added;                            // contents are literal text
  };
  // Throws UserError that names `name` if the parts do not fit together.
  BpeTokenizer(const Parts& parts, const std::string& name);

  std::string_view kind() const override { return "bpe"; }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> end_of_text() const override { return end_of_text_; }
  std::string_view token(int32_t id) const override;
  std::unique_ptr<Encoder> encoder(SpecialTokens special) const override;
  size_t safe_cut(std::string_view text) const override;
  std::string to_json() const override;

  const MergeTable& merges() const { return merges_; }
  int32_t id_of_byte(unsigned char byte) const { return byte_ids_[byte]; }
  const AddedTokens& added() const { return added_; }
  // Whether merges and added tokens are equal. How special tokens strip the text around them does
  // not count, because it changes no data.
  bool same_rules(const BpeTokenizer& other) const;

 private:
  using IdOf = std::unordered_map<std::string_view, int32_t>;
  void add_token(int64_t id, std::string name, std::string bytes, const std::string& file);
  void add_added(const Parts& parts, const std::string& file, IdOf& id_of);
  void find_bytes(const IdOf& in_vocabulary, const std::string& file);

  std::vector<std::string> names_;   // by id, as in the files
  std::vector<std::string> tokens_;  // by id, bytes
  AddedTokens added_;
  std::vector<std::pair<int32_t, int32_t>> merge_list_;
  MergeTable merges_;
  std::array<int32_t, 256> byte_ids_;
  std::optional<int32_t> end_of_text_;
};

inline constexpr int kMaxJsonDepth = 64;  // of a tokenizer's files

// The id as 32 bits. Throws UserError that names the token if it is not below kMaxVocabSize.
int32_t checked_id(int64_t id, std::string_view token, const std::string& file);

// Opens tokenizer.json in Hugging Face's format: byte-level BPE, or characters.
std::unique_ptr<Tokenizer> parse_hugging_face_tokenizer(const nlohmann::json& json,
                                                        const std::string& name);

// tokenizer.json of a BPE in Hugging Face's format.
std::string hugging_face_json(nlohmann::json vocabulary, nlohmann::json merges,
                              nlohmann::json added_tokens, const nlohmann::json& pre_tokenizer,
                              const nlohmann::json& decoder);

}  // namespace lathe
