#include "src/data/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <unordered_map>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/data/pretokenizer.h"
#include "src/data/shard.h"
#include "src/data/utf8.h"

namespace lathe {

namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// GPT-2's printable characters for bytes: printable Latin-1 bytes stand for themselves; the other
// 68 become U+0100, U+0101, ... in order.
bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

std::array<int32_t, 256> code_points_of_bytes() {
  std::array<int32_t, 256> code_points;
  int32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    code_points[static_cast<size_t>(b)] = stands_for_itself(b) ? b : next++;
  }
  return code_points;
}

std::unordered_map<int32_t, char> bytes_of_code_points() {
  std::unordered_map<int32_t, char> bytes;
  const auto code_points = code_points_of_bytes();
  for (int b = 0; b < 256; ++b) bytes[code_points[static_cast<size_t>(b)]] = static_cast<char>(b);
  return bytes;
}

// The bytes that a name stands for; empty if it has other characters than GPT-2's.
std::optional<std::string> bytes_of_name(std::string_view name,
                                         const std::unordered_map<int32_t, char>& bytes) {
  std::string result;
  while (!name.empty()) {
    const CodePoint c = decode_utf8(name);
    const auto found = bytes.find(c.value);
    if (found == bytes.end()) return std::nullopt;
    result += found->second;
    name.remove_prefix(static_cast<size_t>(c.length));
  }
  return result;
}

// Joins pairs in one word of any length in O(n log n), with a doubly linked list of symbols and a
// heap of candidate pairs, lowest rank first and leftmost among equals. Because each merge is made
// of bytes and earlier merges, this equals encoder.py's "join all occurrences of the lowest pair".
class WordMerger {
 public:
  explicit WordMerger(const BpeTokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void encode(std::string_view word, std::vector<int32_t>& ids) {
    symbols_.clear();
    heap_.clear();
    LATHE_CHECK(word.size() < INT32_MAX, "a word of {} bytes", word.size());
    const auto n = static_cast<int32_t>(word.size());
    for (int32_t i = 0; i < n; ++i) {
      symbols_.push_back(
          {tokenizer_.id_of_byte(static_cast<unsigned char>(word[static_cast<size_t>(i)])), i - 1,
           i + 1 < n ? i + 1 : -1});
    }
    for (int32_t i = 0; i + 1 < n; ++i) propose(i);
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>{});
    while (!heap_.empty()) join_lowest();
    for (int32_t i = 0; i != -1; i = symbols_[static_cast<size_t>(i)].next) {
      ids.push_back(symbols_[static_cast<size_t>(i)].id);
    }
  }

 private:
  struct Symbol {
    int32_t id;  // -1: joined into its left neighbour
    int32_t previous, next;
  };
  struct Candidate {
    int32_t rank, left;  // left: place of the left symbol
    int32_t left_id, right_id, joined;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  Symbol& at(int32_t place) { return symbols_[static_cast<size_t>(place)]; }

  bool propose(int32_t left) {
    const int32_t right = at(left).next;
    if (right == -1) return false;
    const auto* merge = tokenizer_.merges().find(at(left).id, at(right).id);
    if (!merge) return false;
    heap_.push_back({merge->rank, left, at(left).id, at(right).id, merge->joined});
    return true;
  }

  void propose_later(int32_t left) {
    if (propose(left)) std::push_heap(heap_.begin(), heap_.end(), std::greater<>{});
  }

  void join_lowest() {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>{});
    const Candidate c = heap_.back();
    heap_.pop_back();
    Symbol& left = at(c.left);
    // A candidate is stale if one of its symbols has been joined since.
    if (left.id != c.left_id || left.next == -1 || at(left.next).id != c.right_id) return;
    Symbol& right = at(left.next);
    right.id = -1;
    left.id = c.joined;
    left.next = right.next;
    if (left.next != -1) at(left.next).previous = c.left;
    propose_later(c.left);
    if (left.previous != -1) propose_later(left.previous);
  }

  const BpeTokenizer& tokenizer_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

// A direct-mapped cache of short words. Each takes one cache line; a newer word replaces an older.
class WordCache {
 public:
  struct alignas(64) Entry {
    uint8_t length;  // of the word; 0: empty
    uint8_t count;   // of the tokens
    char word[32];
    uint16_t ids[15];
  };
  static_assert(sizeof(Entry) == 64);

  WordCache() : entries_(size_t{1} << kBits) {}
  static bool holds(std::string_view word) { return word.size() <= sizeof(Entry::word); }
  Entry& entry(std::string_view word) {
    return entries_[XXH3_64bits(word.data(), word.size()) >> (64 - kBits)];
  }

 private:
  static constexpr int kBits = 16;
  std::vector<Entry> entries_;
};

class BpeEncoder : public Encoder {
 public:
  BpeEncoder(const BpeTokenizer& tokenizer, SpecialTokens special)
      : added_(tokenizer.added()), special_(special), merger_(tokenizer) {}

  void encode(std::string_view text, std::vector<int32_t>& ids) override {
    const size_t valid = valid_utf8_prefix(text);
    if (valid != text.size()) {
      throw UserError("the text is not UTF-8 at byte {}; convert it", valid);
    }
    if (!added_.matter(special_)) return encode_words(text, ids);
    for (const AddedTokens::Piece& piece : added_.split(text, special_)) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
      } else {
        encode_words(piece.text, ids);
      }
    }
  }

 private:
  void encode_words(std::string_view text, std::vector<int32_t>& ids) {
    while (!text.empty()) {
      const size_t length = next_word(text);
      encode_word(text.substr(0, length), ids);
      text.remove_prefix(length);
    }
  }

  void encode_word(std::string_view word, std::vector<int32_t>& ids) {
    if (!WordCache::holds(word)) return merger_.encode(word, ids);
    WordCache::Entry& entry = cache_.entry(word);
    if (entry.length == word.size() && std::memcmp(entry.word, word.data(), word.size()) == 0) {
      ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
      return;
    }
    const size_t before = ids.size();
    merger_.encode(word, ids);
    const size_t count = ids.size() - before;
    if (count > std::size(entry.ids)) return;
    entry.length = static_cast<uint8_t>(word.size());
    entry.count = static_cast<uint8_t>(count);
    std::memcpy(entry.word, word.data(), word.size());
    std::copy(ids.end() - static_cast<ptrdiff_t>(count), ids.end(), entry.ids);
  }

  const AddedTokens& added_;
  SpecialTokens special_;
  WordMerger merger_;
  WordCache cache_;
};

}  // namespace

MergeTable::MergeTable(size_t merges) {
  const int bits = std::max(4, static_cast<int>(std::bit_width(merges * 2)));
  slots_.assign(size_t{1} << bits, Slot{0, {-1, 0}});
  shift_ = 64 - bits;
}

static uint32_t merge_key(int32_t left, int32_t right) {
  return static_cast<uint32_t>(left) << 16 | static_cast<uint32_t>(right);
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint32_t key = merge_key(left, right);
  size_t i = slot_of(key);
  while (slots_[i].merge.rank >= 0 && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = {key, merge};
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const uint32_t key = merge_key(left, right);
  for (size_t i = slot_of(key); slots_[i].merge.rank >= 0; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].key == key) return &slots_[i].merge;
  }
  return nullptr;
}

BpeTokenizer::BpeTokenizer(const Parts& parts, const std::string& name)
    : merges_(parts.merges.size()) {
  const auto bytes = bytes_of_code_points();
  IdOf in_vocabulary;
  names_.reserve(parts.vocabulary.size() + parts.added.size());
  for (const auto& [token, id] : parts.vocabulary) {
    add_token(id, token, bytes_of_name(token, bytes).value_or(token), name);
    in_vocabulary[token] = static_cast<int32_t>(id);
  }
  IdOf id_of = in_vocabulary;
  add_added(parts, name, id_of);
  if (id_of.size() != tokens_.size()) {
    throw UserError("{} has {} tokens, but ids up to {}; give an undamaged tokenizer", name,
                    id_of.size(), static_cast<int64_t>(tokens_.size()) - 1);
  }
  if (id_of.contains(kEndOfText)) end_of_text_ = id_of[kEndOfText];
  find_bytes(in_vocabulary, name);

  const auto find = [&](const std::string& token) {
    const auto found = in_vocabulary.find(token);
    if (found == in_vocabulary.end()) {
      throw UserError(
          "{} lacks the token \"{}\", which its merges need; "
          "give a vocabulary and merges that belong together",
          name, shortened(token, kMostQuotedBytes));
    }
    return found->second;
  };
  for (const auto& [left, right] : parts.merges) {
    const auto rank = static_cast<int32_t>(merge_list_.size());
    merge_list_.emplace_back(find(left), find(right));
    merges_.insert(merge_list_.back().first, merge_list_.back().second, {rank, find(left + right)});
  }
}

// OpenAI's files do not mark <|endoftext|> as special, but it is.
void BpeTokenizer::add_added(const Parts& parts, const std::string& name, IdOf& id_of) {
  std::vector<AddedToken> added;
  std::set<std::string_view> contents;
  for (const AddedToken& token : parts.added) {
    const auto found = id_of.find(token.content);
    if (found == id_of.end()) {
      add_token(token.id, token.content, token.content, name);
      id_of[token.content] = token.id;
    } else if (found->second != token.id) {
      throw UserError("{} gives the token {} the ids {} and {}; give an undamaged tokenizer", name,
                      shortened(token.content, kMostQuotedBytes), found->second, token.id);
    } else if (tokens_[static_cast<size_t>(token.id)] != token.content) {
      throw UserError(
          "{} adds the token {}, which its vocabulary uses for other bytes; "
          "give a tokenizer without this added token",
          name, shortened(token.content, kMostQuotedBytes));
    }
    if (contents.insert(token.content).second) added.push_back(token);
  }
  const auto end_of_text = id_of.find(kEndOfText);
  if (end_of_text != id_of.end() && !contents.contains(kEndOfText)) {
    added.push_back({.content = std::string(kEndOfText), .id = end_of_text->second});
  }
  added_ = AddedTokens(std::move(added));
}

void BpeTokenizer::find_bytes(const IdOf& in_vocabulary, const std::string& name) {
  const auto code_points = code_points_of_bytes();
  std::vector<size_t> missing;
  for (size_t b = 0; b < 256; ++b) {
    std::string token;
    append_utf8(code_points[b], token);
    const auto found = in_vocabulary.find(token);
    if (found == in_vocabulary.end()) {
      missing.push_back(b);
    } else {
      byte_ids_[b] = found->second;
    }
  }
  if (missing.empty()) return;
  throw UserError(
      "{} has no token for {} of the 256 bytes (0x{:02x} is the first), so there are texts that it "
      "cannot encode; train it with all bytes as its initial alphabet",
      name, missing.size(), missing[0]);
}

int32_t checked_id(int64_t id, std::string_view token, const std::string& file) {
  if (id < 0 || id >= kMaxVocabSize) {
    throw UserError("{} gives the token {} the id {}; ids have 16 bits here, from 0 to {}", file,
                    shortened(token, kMostQuotedBytes), id, kMaxVocabSize - 1);
  }
  return static_cast<int32_t>(id);
}

void BpeTokenizer::add_token(int64_t id, std::string name, std::string bytes,
                             const std::string& file) {
  const auto place = static_cast<size_t>(checked_id(id, name, file));
  if (place >= tokens_.size()) {
    tokens_.resize(place + 1);
    names_.resize(place + 1);
  }
  if (!names_[place].empty()) {
    throw UserError("{} gives the tokens {} and {} the same id {}; give an undamaged tokenizer",
                    file, shortened(names_[place], kMostQuotedBytes),
                    shortened(name, kMostQuotedBytes), id);
  }
  if (name.empty()) throw UserError("{} gives id {} to a token without text", file, id);
  names_[place] = std::move(name);
  tokens_[place] = std::move(bytes);
}

std::string_view BpeTokenizer::token(int32_t id) const {
  LATHE_CHECK(id >= 0 && id < vocab_size(), "token {} of {}", id, vocab_size());
  return tokens_[static_cast<size_t>(id)];
}

std::unique_ptr<Encoder> BpeTokenizer::encoder(SpecialTokens special) const {
  return std::make_unique<BpeEncoder>(*this, special);
}

// At a word boundary that no added token crosses, the text before it splits into the same pieces
// and words whatever follows, and the text after it whatever came before.
size_t BpeTokenizer::safe_cut(std::string_view text) const {
  size_t cut = last_word_boundary(text);
  while (cut > 0 && added_.may_cross(text, cut)) cut = last_word_boundary(text.substr(0, cut));
  return cut;
}

bool BpeTokenizer::same_rules(const BpeTokenizer& other) const {
  const auto same = [](const AddedToken& a, const AddedToken& b) {
    return a.id == b.id && a.content == b.content && a.special == b.special &&
           (a.special || a.normalized == b.normalized);
  };
  return merge_list_ == other.merge_list_ &&
         std::ranges::equal(added_.list(), other.added_.list(), same);
}

}  // namespace lathe
