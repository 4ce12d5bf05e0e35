// Tokenizer files of any bytes open or give a UserError. An opened tokenizer decodes what it
// encodes, and writes a tokenizer.json that opens as the same tokenizer.
#include "src/data/tokenizer.h"

// Bytes up to a NUL are the vocabulary, the rest are the merges. Without a NUL, all bytes are a
// tokenizer.json.
static std::unique_ptr<lathe::Tokenizer> parse(std::string_view input) {
  const size_t end = input.find('\0');
  if (end == std::string_view::npos) return lathe::parse_tokenizer_json(input, "fuzz");
  return lathe::parse_bpe_files(input.substr(0, end), input.substr(end + 1), "fuzz");
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer = parse({reinterpret_cast<const char*>(data), size});
    const std::string json = tokenizer->to_json();
    LATHE_CHECK(lathe::parse_tokenizer_json(json, "own")->to_json() == json);
    std::string text = "It's the  <|endoftext|> text\n\n of 12 \xC3\xA9\xE4\xBD\xA0";
    if (tokenizer->kind() == "char") {
      text.clear();
      for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) text += tokenizer->token(id);
    }
    LATHE_CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  } catch (const lathe::UserError&) {
  }
  return 0;
}
