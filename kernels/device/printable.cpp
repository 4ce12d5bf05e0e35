#include "kernels/device/printable.h"

#include <utf8proc.h>

namespace lathe {

Character character_at(std::string_view text) {
  utf8proc_int32_t code = kBroken;
  const utf8proc_ssize_t n =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                       static_cast<utf8proc_ssize_t>(text.size()), &code);
  if (n <= 0) return {kBroken, 1};
  return {code, static_cast<size_t>(n)};
}

bool is_control(int32_t code) {
  return code >= 0 && (code < 0x20 || (code >= 0x7f && code < 0xa0));
}

std::string printable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Character c = character_at(text);
    if (c.code == kBroken) {
      result += "\uFFFD";
    } else if (is_control(c.code) && c.code != '\n' && c.code != '\t') {
      result += '?';
    } else {
      result += text.substr(0, c.bytes);
    }
    text.remove_prefix(c.bytes);
  }
  return result;
}

std::string shortened(std::string_view text, size_t most_bytes) {
  constexpr std::string_view kGap = " ... ";
  if (text.size() <= most_bytes || most_bytes <= kGap.size()) return std::string(text);
  const auto inside = [&](size_t at) { return (text[at] & 0xc0) == 0x80; };
  size_t head = (most_bytes - kGap.size()) * 3 / 4;
  size_t tail = text.size() - (most_bytes - kGap.size() - head);
  for (int i = 0; i < 3 && head > 0 && inside(head); ++i) --head;
  for (int i = 0; i < 3 && tail < text.size() && inside(tail); ++i) ++tail;
  return std::string(text.substr(0, head)).append(kGap).append(text.substr(tail));
}

}  // namespace lathe
