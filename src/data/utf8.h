// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lathe {

struct CodePoint {
  int32_t value;  // -1: no valid sequence starts here
  int length;     // bytes; 1 if invalid
};

// The code point at the start of text, which is not empty.
CodePoint decode_utf8(std::string_view text);

// The offset of the first byte that starts no valid sequence, or text.size().
size_t valid_utf8_prefix(std::string_view text);

// Bytes of the byte order mark at the start of text: 3, or 0 if there is none.
size_t byte_order_mark(std::string_view text);

// How many bytes at the end of `text` begin a sequence that is cut off (0 .. 3).
size_t incomplete_utf8_tail(std::string_view text);

// Code points in valid UTF-8.
int64_t count_code_points(std::string_view text);

void append_utf8(int32_t code_point, std::string& text);

// Byte offset of code point `index` in valid UTF-8, or text.size() if there are fewer.
size_t offset_of_code_point(std::string_view text, int64_t index);

}  // namespace lathe
