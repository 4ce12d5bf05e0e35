// build/sample: continues a prompt with the weights of a checkpoint.
#include "kernels/device/standard_streams.h"
#include "src/data/utf8.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/io/flags.h"
#include "src/model/decoder.h"
#include "src/model/weights.h"
#include "src/train/generate.h"

namespace lathe {
namespace {

constexpr int64_t kPrefillChunk = 128;  // tokens of a prompt that go through the model at once
constexpr uint64_t kMaxPromptBytes = 1 << 24;

struct SampleOptions {
  std::string checkpoint;
  std::optional<std::string> prompt;
  int64_t tokens = 256;
  SamplingConfig sampling{.seed = 1337};
  DType dtype = DType::fp32;
  DeviceKind device = DeviceKind::any;
  int threads = 0;
};

bool parse(int argc, char** argv, SampleOptions& o) {
  Flags flags("sample", "Continues a prompt with a trained model.",
              {required(text("checkpoint", o.checkpoint,
                             "Directory with config.json, model.safetensors and a tokenizer")),
               text("prompt", o.prompt,
                    "Text, or @FILE; a newline if not given; special tokens in it, such as "
                    "<|endoftext|>, are tokens"),
               number("tokens", o.tokens, 0, 1 << 30, "Tokens to make"),
               number("temperature", o.sampling.temperature, 0, 1e6, "0 takes the likeliest token"),
               number("top-k", o.sampling.top_k, 0, 1 << 30, "Only the k likeliest tokens; 0: all"),
               number("top-p", o.sampling.top_p, 0, 1,
                      "Only the likeliest tokens that make up this probability"),
               number("seed", o.sampling.seed, 0, UINT64_MAX, "The same seed gives the same text"),
               choice("dtype", o.dtype, {DType::fp32, DType::bf16}, "Number type"),
               choice("device", o.device, {DeviceKind::any, DeviceKind::cpu, DeviceKind::cuda},
                      "auto is a GPU if one answers, else the CPU"),
               number("threads", o.threads, 0, 4096, "0: OMP_NUM_THREADS, or one per core")});
  if (!flags.parse(argc, argv)) return false;
  const bool likeliest = o.sampling.temperature == 0;
  for (const char* flag : {"top-k", "top-p"})
    flags.refuse_idle(flag, likeliest, "with --temperature 0, which takes the likeliest token");
  return true;
}

int sample(int argc, char** argv) {
  SampleOptions options;
  if (!parse(argc, argv, options)) return 0;
  const std::filesystem::path directory = options.checkpoint;
  verify_model(directory);
  const ModelConfig config = read_model_config(directory);
  const auto tokenizer = load_tokenizer(directory);
  if (tokenizer->vocab_size() > config.vocab_size) {
    throw UserError("{}: the tokenizer has {} tokens, but the model only {}", directory.string(),
                    tokenizer->vocab_size(), config.vocab_size);
  }
  std::string prompt = options.prompt.value_or(default_prompt(*tokenizer));
  if (prompt.starts_with('@')) {
    prompt = read_whole_file(prompt.substr(1), kMaxPromptBytes);
    prompt.erase(0, byte_order_mark(prompt));
  }

  const auto device = make_device(options.device, options.threads);
  const int64_t chunk = std::min(kPrefillChunk, config.seq_len);
  Arena arena(*device, Sampler::plan(config, options.dtype, chunk, *device).total());
  Sampler sampler(config, options.dtype, chunk, *device, arena);
  read_model(directory, config, sampler.parameters.layout(), sampler.parameters.weights().flat,
             *device);

  print_out(prompt);
  generate_text(sampler.decoder, *tokenizer, prompt, options.tokens, options.sampling, print_out);
  print_out("\n");
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("sample", [&] { return lathe::sample(argc, argv); });
}
