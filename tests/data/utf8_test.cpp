#include "src/data/utf8.h"

#include <gtest/gtest.h>

#include <vector>

namespace lathe {
namespace {

// From the definition: the only well-formed bytes of a code point.
std::string obvious_utf8(int32_t c) {
  const auto byte = [](int32_t value) { return static_cast<char>(value); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xc0 | c >> 6), byte(0x80 | (c & 63))};
  if (c < 0x10000) {
    return {byte(0xe0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  }
  return {byte(0xf0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)),
          byte(0x80 | (c & 63))};
}

TEST(Utf8, RoundTripsEveryCodePoint) {
  for (int32_t c = 0; c < 0x110000; ++c) {
    const std::string bytes = obvious_utf8(c);
    const CodePoint decoded = decode_utf8(bytes + "x");
    if (c >= 0xd800 && c < 0xe000) {
      ASSERT_EQ(decoded.value, -1) << "surrogates are not characters";
      continue;
    }
    ASSERT_EQ(decoded.value, c);
    ASSERT_EQ(decoded.length, static_cast<int>(bytes.size()));
    std::string encoded;
    append_utf8(c, encoded);
    ASSERT_EQ(encoded, bytes);
    ASSERT_EQ(count_code_points(bytes), 1);
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      ASSERT_EQ(incomplete_utf8_tail(bytes + bytes.substr(0, cut)), cut);
      ASSERT_EQ(decode_utf8(bytes.substr(0, cut)).value, -1);
    }
    ASSERT_EQ(incomplete_utf8_tail(bytes), 0u);
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3", "\xe4\xbd",
        "\xc3(", "\xe4\xbd(", "\xf0\x9f\x98("}) {
    EXPECT_EQ(valid_utf8_prefix(bad), 0u) << bad;
    EXPECT_EQ(valid_utf8_prefix(std::string("h\xc3\xa9").append(bad)), 3u) << bad;
    EXPECT_EQ(valid_utf8_prefix(std::string("h\xc3\xa9").append(bad).append("more")), 3u) << bad;
  }
  EXPECT_EQ(valid_utf8_prefix(""), 0u);
  EXPECT_EQ(valid_utf8_prefix(std::string_view("\0a", 2)), 2u);
}

TEST(Utf8, CountsAndFindsCharacters) {
  const std::string text = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80z";
  EXPECT_EQ(count_code_points(text), 5);
  const std::vector<size_t> offsets = {0, 1, 3, 6, 10, 11, 11};
  for (size_t i = 0; i < offsets.size(); ++i) {
    EXPECT_EQ(offset_of_code_point(text, static_cast<int64_t>(i)), offsets[i]);
  }
}

}  // namespace
}  // namespace lathe
