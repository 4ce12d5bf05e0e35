// Text of any bytes: BPE reproduces valid UTF-8, also if it is cut where that is allowed, and
// refuses invalid UTF-8. Tokens in any order print as valid UTF-8.
#include "src/data/tokenizer.h"
#include "src/data/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = lathe::load_tokenizer(LATHE_SMALL_BPE);
  static const auto encoder = tokenizer->encoder(lathe::SpecialTokens::as_text);
  const std::string text(reinterpret_cast<const char*>(data), size);

  lathe::StreamDecoder decoder(*tokenizer);
  std::string printed;
  for (size_t i = 0; i + 1 < size; i += 2) {
    printed += decoder.next((data[i] * 256 + data[i + 1]) % tokenizer->vocab_size());
    LATHE_CHECK(lathe::valid_utf8_prefix(printed) == printed.size());
  }
  printed += decoder.finish();
  LATHE_CHECK(lathe::valid_utf8_prefix(printed) == printed.size());

  const bool valid = lathe::valid_utf8_prefix(text) == size;
  std::vector<int32_t> ids;
  try {
    encoder->encode(text, ids);
    LATHE_CHECK(valid);
  } catch (const lathe::UserError&) {
    LATHE_CHECK(!valid);
    return 0;
  }
  LATHE_CHECK(tokenizer->decode(ids) == text);
  const size_t cut = tokenizer->safe_cut(text);
  std::vector<int32_t> parts;
  encoder->encode(text.substr(0, cut), parts);
  encoder->encode(text.substr(cut), parts);
  LATHE_CHECK(parts == ids);
  return 0;
}
