#include "src/train/generate.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace lathe {

std::string default_prompt(const Tokenizer& tokenizer) {
  try {
    tokenizer.encode("\n");
    return "\n";
  } catch (const UserError&) {
    return "";
  }
}

namespace {

// Some logits may be -infinity (an impossible token), but not all.
void require_finite(std::span<const double> logits, size_t tokens) {
  double largest = -INFINITY;
  bool nan = false;
  for (const double logit : logits) {
    nan = nan || std::isnan(logit);
    largest = std::max(largest, logit);
  }
  if (!nan && std::isfinite(largest)) return;
  throw LogitsNotFinite(
      fmt::format("the model's logits are not finite at token {}: its weights are too large to "
                  "compute with; use an earlier checkpoint",
                  tokens));
}

}  // namespace

void generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                   int64_t tokens, const SamplingConfig& config,
                   const std::function<void(std::string_view)>& emit,
                   const std::function<bool()>& stop) {
  std::vector<int32_t> context = tokenizer.encode(prompt, SpecialTokens::as_tokens);
  if (context.empty()) context.push_back(tokenizer.end_of_text().value_or(0));
  StreamDecoder stream(tokenizer);
  decoder.reset();
  size_t known = 0;  // tokens of the context that the decoder has processed
  for (int64_t i = 0; i < tokens && !(stop && stop()); ++i) {
    const size_t capacity = static_cast<size_t>(decoder.capacity());
    if (context.size() > capacity) {
      context.erase(context.begin(), context.end() - static_cast<int64_t>((capacity + 1) / 2));
      decoder.reset();
      known = 0;
    }
    // If the vocabulary was rounded up, the model has more tokens than the tokenizer.
    const std::span<const double> logits = decoder.append(std::span(context).subspan(known));
    const size_t count = std::min(logits.size(), static_cast<size_t>(tokenizer.vocab_size()));
    require_finite(logits.first(count), context.size());
    const int32_t next = sample_token(logits.first(count), config, i);
    known = context.size();
    context.push_back(next);
    if (const std::string text = stream.next(next); !text.empty()) emit(text);
  }
  if (const std::string text = stream.finish(); !text.empty()) emit(text);
}

}  // namespace lathe
