// GPT-2's pre-tokenizer: splits text into the words inside which BPE merges. It is the regular
// expression
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// written out by hand. \s is Unicode's White_Space (including U+0085 but not U+001C .. U+001F), as
// in the `regex` module that OpenAI's encoder.py uses. Categories are Unicode 16.0's on every
// machine, as in tiktoken and Hugging Face's tokenizers; characters that a later Unicode assigned
// count as neither letter nor number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lathe {

// The numbers in unicode_classes.inc.
enum class CharClass : uint8_t { letter = 0, number = 1, space = 2, other = 3 };

CharClass char_class(int32_t code_point);

// Bytes of the first word of `text`, which must be valid UTF-8 and not empty.
size_t next_word(std::string_view text);

// Bytes of the white space at the start of `text`, and where the white space at its end begins.
size_t end_of_white_space(std::string_view text);
size_t begin_of_white_space(std::string_view text);

// The last place in `text` where words end whatever comes before and after `text`; 0 if there is
// none. The source has the proof.
size_t last_word_boundary(std::string_view text);

}  // namespace lathe
