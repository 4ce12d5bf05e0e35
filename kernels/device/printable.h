// Text that came from outside (files, names, models), on its way to a terminal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lathe {

// One character of UTF-8: its code point (kBroken for a byte that begins none) and its bytes.
inline constexpr int32_t kBroken = -1;
struct Character {
  int32_t code;
  size_t bytes;
};
Character character_at(std::string_view text);  // the first of a text that is not empty

bool is_control(int32_t code);  // ASCII's 33 and the 32 of C1

// The text with broken UTF-8 as U+FFFD and control characters other than newline and tab as '?', so
// that it cannot command the terminal.
std::string printable(std::string_view text);

// The text if it has at most `most_bytes`; else its beginning and its end with " ... " between.
// Characters stay whole.
std::string shortened(std::string_view text, size_t most_bytes);

// A name, key or value of a file is not longer than this in a message.
inline constexpr size_t kMostQuotedBytes = 100;
// Nor is what a library says of one.
inline constexpr size_t kMostReportedBytes = 400;

}  // namespace lathe
