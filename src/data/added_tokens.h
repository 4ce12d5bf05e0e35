// Added tokens: texts that are one token wherever they appear, cut out before BPE sees the rest.
// Hugging Face's rule: going from left to right, take the longest token that starts at each place;
// first over the whole text with the tokens that are not `normalized`, then over the rest with the
// others.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/data/tokenizer.h"

namespace lathe {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = true;      // plain text unless SpecialTokens asks for tokens
  bool normalized = false;  // only decides the order of matching; there is no normalizer
  bool lstrip = false;      // takes the white space before it
  bool rstrip = false;      // takes the white space after it
};

class AddedTokens {
 public:
  // Contents are not empty, and each occurs once.
  explicit AddedTokens(std::vector<AddedToken> tokens = {});

  const std::vector<AddedToken>& list() const { return tokens_; }  // by id

  // Whether split() can match anything.
  bool matter(SpecialTokens special) const {
    return special == SpecialTokens::as_tokens ? !tokens_.empty() : any_ordinary_;
  }

  struct Piece {
    std::string_view text;
    int32_t id;  // -1: plain text
  };
  std::vector<Piece> split(std::string_view text, SpecialTokens special) const;

  // Whether a token matched in plain text starts before `cut` and may end after it, whatever
  // follows `text`.
  bool may_cross(std::string_view text, size_t cut) const;

 private:
  using Places = std::vector<size_t>;
  const AddedToken* longest_at(std::string_view text, bool normalized) const;
  void split_plain(std::string_view text, SpecialTokens special, bool normalized,
                   std::vector<Piece>& pieces) const;

  std::vector<AddedToken> tokens_;
  std::array<Places, 256> by_first_byte_;  // indices into tokens_, longest first
  size_t longest_ = 0;                     // bytes
  bool any_ordinary_ = false;
};

}  // namespace lathe
