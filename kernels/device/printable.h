// Makes text from outside (files, names, models) safe to print on a terminal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lathe {

// One character of UTF-8: its code point (kBroken if its first byte begins none) and its length.
inline constexpr int32_t kBroken = -1;
struct Character {
  int32_t code;
  size_t bytes;
};
Character character_at(std::string_view text);  // the first of a nonempty text

bool is_control(int32_t code);  // the 33 of ASCII and the 32 of C1

// Replaces broken UTF-8 with U+FFFD, and control characters except newline and tab with '?', so
// that the text cannot control the terminal.
std::string printable(std::string_view text);

// The text if it has at most `most_bytes`; else its beginning and its end with " ... " between.
// Never cuts a character.
std::string shortened(std::string_view text, size_t most_bytes);

// The longest name, key or value of a file that a message quotes.
inline constexpr size_t kMostQuotedBytes = 100;
// The longest message of a library that a message quotes.
inline constexpr size_t kMostReportedBytes = 400;

}  // namespace lathe
