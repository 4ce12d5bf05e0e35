// Reading and writing weights: random initialisation, Hugging Face's GPT-2 layout (config.json and
// model.safetensors), and the optimizer's state in files beside it.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/io/safetensors.h"
#include "src/model/config.h"
#include "src/model/optimizer.h"
#include "src/model/parameters.h"

namespace lathe {

// Checksums of the files that a call wrote, by file name, for a checkpoint's manifest.
using WrittenFiles = std::map<std::string, FileDigest>;

// Fills `to`, elements [begin, begin + to.elements()) of the layout in any number type, with N(0,
// init_std) from Philox, keyed by seed, parameter and element, so that values depend on neither the
// device nor the layout. begin is a multiple of kParameterAlignment. `std` replaces kInitStd.
void initialize_parameters(const ParameterLayout& layout, uint64_t seed, int64_t begin,
                           const Tensor& to, Device& device, float std = kInitStd);

// Writes DIR/config.json and DIR/model.safetensors (fp32, vocabulary unpadded, names and shapes of
// transformers' GPT2Model), bucket by bucket of the layout. For a model without biases, writes
// zeros and "lathe_bias": false. `end_of_text` is the token that begins and ends a text, if the
// vocabulary has one.
class ModelWriter {
 public:
  ModelWriter(const std::filesystem::path& dir, const ModelConfig& config,
              const ParameterLayout& layout, Device& device, std::optional<int32_t> end_of_text);
  // All elements of the next bucket.
  void write(size_t bucket, const Tensor& all);
  WrittenFiles finish();

 private:
  const ParameterLayout& layout_;
  Device& device_;
  std::vector<ParameterSpec> absent_;  // biases
  WrittenFiles written_;
  SafetensorsWriter file_;
};

// The text of tokenizer_config.json, which belongs beside tokenizer.json. Without it transformers
// assumes GPT-2's special tokens and adds them to a vocabulary that lacks them.
std::string tokenizer_config_json(const ModelConfig& config,
                                  std::optional<std::string_view> end_of_text);

// Reads DIR/config.json. Throws a UserError that names what lathe does not support, or if DIR has
// no weights that lathe can read. A model that was saved without biases gets them if any bias in
// the file is not zero: transformers adds biases, trains them, and keeps "lathe_bias": false.
// parse_model_config is given the text of `file` and reads nothing else.
ModelConfig parse_model_config(std::string_view text, const std::string& file);
ModelConfig read_model_config(const std::filesystem::path& dir);

// Reads DIR/model.safetensors for a model. All errors are UserErrors.
class ModelReader {
 public:
  ModelReader(const std::filesystem::path& dir, const ModelConfig& config,
              const ParameterLayout& layout);
  // Every parameter must be present with its shape; position embeddings may be longer than
  // config.seq_len. lm_head.weight may replace wte.weight, or be there too if it is the same.
  void require_fit() const;
  // Differs for files that differ in their names, types, shapes or first elements of any tensor.
  std::string fingerprint() const;
  // Reads elements [begin, begin + to.elements()) of the layout, in any number type. They must be
  // finite.
  void read(int64_t begin, const Tensor& to, Device& device) const;

 private:
  ModelConfig config_;
  const ParameterLayout& layout_;
  SafetensorsReader file_;
  std::vector<std::string> names_;  // in the file, of the layout's slots
};
// Checks and reads all of it into flat parameters.
void read_model(const std::filesystem::path& dir, const ModelConfig& config,
                const ParameterLayout& layout, const Tensor& flat, Device& device);

// AdamW's moments, "m.NAME" and "v.NAME", in one file for each rank of the layout:
// DIR/optimizer-RRRRR-of-NNNNN.safetensors holds rank R's share, whatever the ZeRO stage. If a
// parameter is split, the file has its piece as a vector, and its metadata has under NAME the index
// of the first element.
WrittenFiles write_optimizer(const std::filesystem::path& dir, const ParameterStore& parameters,
                             Optimizer& optimizer, Device& device, int64_t rank = 0);
// The number of ranks that wrote a checkpoint's moments. UserError if its manifest does not list
// the file of each.
int64_t optimizer_ranks(const std::filesystem::path& dir, const Manifest& manifest);
// Reads what this optimizer owns from the files of `ranks` ranks. Throws UserError if anything is
// missing or not finite.
void read_optimizer(const std::filesystem::path& dir, int64_t ranks,
                    const ParameterStore& parameters, Optimizer& optimizer, Device& device);

}  // namespace lathe
