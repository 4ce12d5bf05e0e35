// Generates text from a model, for build/sample and for the samples of a training run.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "src/data/tokenizer.h"
#include "src/model/decoder.h"

namespace lathe {

// The prompt of a sample if the user gave none: a newline, or nothing if the tokenizer cannot
// encode it.
std::string default_prompt(const Tokenizer& tokenizer);

// The weights are finite, but the logits of a text are not, so there is no next token.
struct LogitsNotFinite : CheckError {
  using CheckError::CheckError;
};

// Continues `prompt` by `tokens` tokens and passes each piece of text to `emit`. Special tokens in
// the prompt are encoded as tokens. An empty prompt becomes the end-of-text token, or the first
// token if there is none. When the context is full, the model continues from its last half. The
// same seed gives the same text. If `stop` is given and returns true before a token, generation
// ends. Throws LogitsNotFinite.
void generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                   int64_t tokens, const SamplingConfig& config,
                   const std::function<void(std::string_view)>& emit,
                   const std::function<bool()>& stop = {});

}  // namespace lathe
