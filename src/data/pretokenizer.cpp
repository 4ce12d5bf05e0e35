#include "src/data/pretokenizer.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "src/data/utf8.h"

namespace lathe {

namespace {

constexpr std::array<CharClass, 128> make_ascii_classes() {
  std::array<CharClass, 128> classes{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool number = c >= '0' && c <= '9';
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    classes[static_cast<size_t>(c)] = letter   ? CharClass::letter
                                      : number ? CharClass::number
                                      : space  ? CharClass::space
                                               : CharClass::other;
  }
  return classes;
}
constexpr auto kAsciiClasses = make_ascii_classes();

// Ascending: the first code point of each run of one class, times 4, plus the class.
constexpr uint32_t kRuns[] = {
#include "src/data/unicode_classes.inc"
};

struct Classified {
  CharClass kind;
  size_t length;  // bytes
};

Classified classify(std::string_view text, size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) return {kAsciiClasses[byte], 1};
  const CodePoint c = decode_utf8(text.substr(at));
  return {char_class(c.value), static_cast<size_t>(c.length)};
}

// The end of the run of one class that starts at `at`.
size_t end_of_run(std::string_view text, size_t at, CharClass kind) {
  while (at < text.size()) {
    const Classified c = classify(text, at);
    if (c.kind != kind) break;
    at += c.length;
  }
  return at;
}

// Length of 's 't 'm 'd 're 've 'll at the start of text, which starts with an apostrophe; else 0.
size_t contraction(std::string_view text) {
  if (text.size() < 2) return 0;
  const char a = text[1];
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (text.size() < 3) return 0;
  const char b = text[2];
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

size_t previous_code_point(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
  return at;
}

}  // namespace

CharClass char_class(int32_t code_point) {
  if (code_point < 0) return CharClass::other;
  if (code_point < 128) return kAsciiClasses[static_cast<size_t>(code_point)];
  const auto after = std::upper_bound(std::begin(kRuns), std::end(kRuns),
                                      static_cast<uint32_t>(code_point) * 4 + 3);
  return static_cast<CharClass>(*(after - 1) & 3);
}

size_t next_word(std::string_view text) {
  if (text[0] == '\'') {
    if (const size_t length = contraction(text)) return length;
  }
  const size_t start = text[0] == ' ' && text.size() > 1 ? 1 : 0;
  const Classified first = classify(text, start);
  if (first.kind != CharClass::space) return end_of_run(text, start + first.length, first.kind);
  // White space: the whole run if it ends the text; before a word, all but the last character (a
  // space there belongs to the word), but at least one.
  const size_t end = end_of_run(text, start + first.length, CharClass::space);
  if (end == text.size()) return end;
  const size_t last = previous_code_point(text, end);
  return last > 0 ? last : end;
}

size_t end_of_white_space(std::string_view text) {
  return end_of_run(text, 0, CharClass::space);
}

size_t begin_of_white_space(std::string_view text) {
  size_t at = text.size();
  while (at > 0) {
    const size_t before = previous_code_point(text, at);
    if (classify(text, before).kind != CharClass::space) break;
    at = before;
  }
  return at;
}

// A place between characters p (before) and n (after) ends a word in any context if
//   p is not white space, p and n are of different classes, and not (p other, n letter).
// No word crosses it: a word is a run of one class, possibly after a space, or an apostrophe
// (other) and letters. And the words before it do not change if the text ends there: only the white
// space rule looks ahead, and p is not white space.
size_t last_word_boundary(std::string_view text) {
  if (text.empty()) return 0;
  size_t at = previous_code_point(text, text.size());
  CharClass next = classify(text, at).kind;
  while (at > 0) {
    const size_t before = previous_code_point(text, at);
    const CharClass previous = classify(text, before).kind;
    if (previous != CharClass::space && previous != next &&
        !(previous == CharClass::other && next == CharClass::letter)) {
      return at;
    }
    at = before;
    next = previous;
  }
  return 0;
}

}  // namespace lathe
