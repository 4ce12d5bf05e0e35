#include "src/data/added_tokens.h"

#include <algorithm>

#include "src/data/pretokenizer.h"

namespace lathe {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    by_first_byte_[static_cast<unsigned char>(token.content[0])].push_back(i);
    longest_ = std::max(longest_, token.content.size());
    any_ordinary_ = any_ordinary_ || !token.special;
  }
  for (Places& places : by_first_byte_) {
    std::sort(places.begin(), places.end(), [this](size_t a, size_t b) {
      return tokens_[a].content.size() > tokens_[b].content.size();
    });
  }
}

const AddedToken* AddedTokens::longest_at(std::string_view text, bool normalized) const {
  for (size_t i : by_first_byte_[static_cast<unsigned char>(text[0])]) {
    const AddedToken& token = tokens_[i];
    if (token.normalized == normalized && text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

void AddedTokens::split_plain(std::string_view text, SpecialTokens special, bool normalized,
                              std::vector<Piece>& pieces) const {
  size_t plain = 0;  // where the text not yet handed out begins
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text.substr(at), normalized);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at += token->content.size();
    if (token->special && special == SpecialTokens::as_text) continue;
    if (token->lstrip) begin = std::max(plain, begin_of_white_space(text.substr(0, begin)));
    if (token->rstrip) end += end_of_white_space(text.substr(end));
    if (plain < begin) pieces.push_back({text.substr(plain, begin - plain), -1});
    pieces.push_back({text.substr(begin, end - begin), token->id});
    plain = end;
  }
  if (plain < text.size()) pieces.push_back({text.substr(plain), -1});
}

std::vector<AddedTokens::Piece> AddedTokens::split(std::string_view text,
                                                   SpecialTokens special) const {
  std::vector<Piece> first, pieces;
  split_plain(text, special, /*normalized=*/false, first);
  for (const Piece& piece : first) {
    if (piece.id >= 0) {
      pieces.push_back(piece);
    } else {
      split_plain(piece.text, special, /*normalized=*/true, pieces);
    }
  }
  return pieces;
}

// A special token counts too: in plain text it yields no token, but it hides tokens inside it.
bool AddedTokens::may_cross(std::string_view text, size_t cut) const {
  if (!any_ordinary_) return false;
  for (size_t begin = cut - std::min(cut, longest_ - 1); begin < cut; ++begin) {
    const std::string_view rest = text.substr(begin);
    for (size_t i : by_first_byte_[static_cast<unsigned char>(rest[0])]) {
      const std::string_view content = tokens_[i].content;
      if (begin + content.size() > cut && content.starts_with(rest.substr(0, content.size()))) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace lathe
