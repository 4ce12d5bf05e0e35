// Text out of a model: what build/sample and the samples of a training run share.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "src/data/tokenizer.h"
#include "src/model/decoder.h"

namespace lathe {

// What a sample begins with if nobody gave a prompt: a newline, or nothing if the tokenizer cannot
// encode one.
std::string default_prompt(const Tokenizer& tokenizer);

// The weights are finite, but what the model makes of a text is not: there is no next token.
struct LogitsNotFinite : CheckError {
  using CheckError::CheckError;
};

// Continues `prompt` (may be empty: the end-of-text token, or the first token, begins; special
// tokens in it are tokens) by `tokens` tokens and hands on the text as it is made. When the context
// is full, the model goes on from the last half of it. The same seed gives the same text. `stop`,
// if given, is asked before each token and may end it. Throws LogitsNotFinite.
void generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                   int64_t tokens, const SamplingConfig& config,
                   const std::function<void(std::string_view)>& emit,
                   const std::function<bool()>& stop = {});

}  // namespace lathe
