// Weights into and out of memory: random initialisation, Hugging Face's GPT-2 layout (config.json
// and model.safetensors), and the optimizer's state beside it.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/device/device.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/model/config.h"
#include "src/model/optimizer.h"
#include "src/model/parameters.h"

namespace lathe {

// Checksums of the files that a call wrote, by file name: what a checkpoint's manifest lists.
using WrittenFiles = std::map<std::string, FileDigest>;

// Fills flat parameters of any number type: N(0, init_std) from Philox, keyed by seed, parameter
// and element, so that the values depend neither on the device nor on the padding. `std` takes the
// place of kInitStd.
void initialize_parameters(const ParameterLayout& layout, uint64_t seed, const Tensor& flat,
                           Device& device, float std = kInitStd);

// Writes DIR/config.json and DIR/model.safetensors (fp32, vocabulary unpadded, names and shapes of
// transformers' GPT2Model). A model without biases writes zeros and "lathe_bias": false.
// `end_of_text` is the token that begins and ends a text, if the vocabulary has one.
WrittenFiles write_model(const std::filesystem::path& dir, const GPT2Config& config,
                         const ParameterLayout& layout, const Tensor& flat, Device& device,
                         std::optional<int32_t> end_of_text);

// The text of tokenizer_config.json, which belongs beside tokenizer.json: without it transformers
// takes GPT-2's special tokens for granted and adds them to a vocabulary that lacks them.
std::string tokenizer_config_json(const GPT2Config& config,
                                  std::optional<std::string_view> end_of_text);

// Reads DIR/config.json, or throws a UserError that says what lathe cannot do, also if DIR holds no
// weights that lathe reads. A model that was saved without biases has them if any is not zero now:
// transformers gives it biases, trains them, and keeps "lathe_bias": false. parse_model_config is
// handed the text of `file`, and looks at nothing else.
GPT2Config parse_model_config(std::string_view text, const std::string& file);
GPT2Config read_model_config(const std::filesystem::path& dir);

// Reads DIR/model.safetensors into flat parameters of any number type. Every parameter must be
// there in its shape, and finite; position embeddings longer than config.seq_len are cut.
// lm_head.weight may be there beside wte.weight if it is the same, or in its place. Throws
// UserError.
void read_model(const std::filesystem::path& dir, const GPT2Config& config,
                const ParameterLayout& layout, const Tensor& flat, Device& device);

// AdamW's moments, "m.NAME" and "v.NAME", in one file for each rank of the layout: DIR/
// optimizer-RRRRR-of-NNNNN.safetensors holds the share of rank R, whichever stage of ZeRO it runs
// in. Of a parameter that is cut there is the piece as a vector, and in the metadata NAME: the
// place of its first element.
WrittenFiles write_optimizer(const std::filesystem::path& dir, const ParameterStore& parameters,
                             const Optimizer& optimizer, Device& device, int64_t rank = 0);
// How many ranks have written a checkpoint's moments. UserError if its manifest does not list the
// file of each.
int64_t optimizer_ranks(const std::filesystem::path& dir, const Manifest& manifest);
// Reads what this optimizer owns of the files of so many ranks. Throws UserError if anything is
// missing or not finite.
void read_optimizer(const std::filesystem::path& dir, int64_t ranks,
                    const ParameterStore& parameters, const Optimizer& optimizer, Device& device);

}  // namespace lathe
