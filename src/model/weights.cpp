#include "src/model/weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numbers>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "kernels/device/printable.h"
#include "kernels/philox.h"
#include "src/io/json.h"
#include "src/io/json_text.h"
#include "src/io/safetensors.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunk = 1 << 20;  // elements copied through the host at a time
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kHead = "lm_head.weight";

// The part of one parameter inside a part of the layout: the parameter's elements [first, first +
// count), which start at element `local` of the buffer that holds the part.
struct Piece {
  const ParameterSlot* slot = nullptr;
  size_t number = 0;  // of the slot
  int64_t first = 0, count = 0, local = 0;
  bool whole() const { return count == slot->spec.shape.elements(); }
};

// Of elements [begin, begin + elements) of the layout, without padding.
std::vector<Piece> pieces_of(const ParameterLayout& layout, int64_t begin, int64_t elements,
                             int64_t local = 0) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < layout.slots.size(); ++i) {
    const ParameterSlot& slot = layout.slots[i];
    const int64_t from = std::max(slot.offset, begin);
    const int64_t to = std::min(slot.offset + slot.spec.shape.elements(), begin + elements);
    if (from < to)
      pieces.push_back({&slot, i, from - slot.offset, to - from, from - begin + local});
  }
  return pieces;
}

std::vector<Piece> pieces_of(const ParameterLayout& layout, std::span<const ShardPart> parts) {
  std::vector<Piece> pieces;
  for (const ShardPart& part : parts) {
    const auto more = pieces_of(layout, part.begin, part.elements, part.local);
    pieces.insert(pieces.end(), more.begin(), more.end());
  }
  return pieces;
}

template <typename To, typename From>
std::vector<To> converted(const From* values, int64_t count) {
  std::vector<To> result(count);
  for (int64_t i = 0; i < count; ++i) result[i] = static_cast<To>(static_cast<float>(values[i]));
  return result;
}

// Host floats to device values of any number type.
void upload_values(Device& device, const Tensor& to, const float* values) {
  switch (to.dtype) {
    case DType::fp32:
      return device.upload(to, values);
    case DType::bf16:
      return device.upload(to, converted<bf16>(values, to.elements()).data());
    case DType::fp64:
      return device.upload(to, converted<double>(values, to.elements()).data());
    default:
      LATHE_CHECK(false, "{} is no number type of weights", name_of(to.dtype));
  }
}

std::vector<float> download_values(Device& device, const Tensor& from) {
  std::vector<float> values(from.elements());
  switch (from.dtype) {
    case DType::fp32:
      device.download(values.data(), from);
      return values;
    case DType::bf16: {
      std::vector<bf16> narrow(values.size());
      device.download(narrow.data(), from);
      return converted<float>(narrow.data(), from.elements());
    }
    case DType::fp64: {
      std::vector<double> wide(values.size());
      device.download(wide.data(), from);
      return converted<float>(wide.data(), from.elements());
    }
    default:
      LATHE_CHECK(false, "{} is no number type of weights", name_of(from.dtype));
  }
  return values;
}

std::vector<int64_t> dims_of(const Shape& shape) {
  return {shape.dim.begin(), shape.dim.begin() + shape.rank};
}

using ChunkFunction = std::function<void(int64_t first, int64_t count)>;
void for_each_chunk(int64_t elements, const ChunkFunction& body) {
  for (int64_t first = 0; first < elements; first += kChunk) {
    body(first, std::min(kChunk, elements - first));
  }
}

// Elements [first, first + count) of a parameter; first must be a multiple of 4. Each Philox call
// gives two Box-Muller pairs. The first word of a pair is never zero, because it has no logarithm.
void fill_normal(float std, uint64_t seed, uint32_t parameter, int64_t first,
                 std::span<float> values) {
  for (size_t i = 0; i < values.size(); i += 4) {
    const auto words =
        philox(seed, (static_cast<uint64_t>(first) + i) / 4, kPhiloxSiteInit, parameter);
    for (size_t j = i; j < std::min(i + 4, values.size()); j += 2) {
      const double radius = std * std::sqrt(-2 * std::log((words[j - i] + 0.5) / 4294967296.0));
      const double angle = 2 * std::numbers::pi * (words[j - i + 1] / 4294967296.0);
      values[j] = static_cast<float>(radius * std::cos(angle));
      if (j + 1 < values.size()) values[j + 1] = static_cast<float>(radius * std::sin(angle));
    }
  }
}

// The same on all threads of the machine: each value depends only on its position.
std::vector<float> initial_values(const ParameterSpec& spec, uint64_t seed, uint32_t parameter,
                                  int64_t first, int64_t count) {
  std::vector<float> values(count, spec.init_value);
  if (spec.init_std == 0) return values;
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  const size_t part = std::max<size_t>(4096, (values.size() / threads + 3) / 4 * 4 + 4);
  std::vector<std::jthread> workers;
  for (size_t begin = 0; begin < values.size(); begin += part) {
    const auto mine = std::span(values).subspan(begin, std::min(part, values.size() - begin));
    workers.emplace_back([=, &spec] {
      fill_normal(spec.init_std, seed, parameter, first + static_cast<int64_t>(begin), mine);
    });
  }
  workers.clear();  // joins
  return values;
}

void write_elements(SafetensorsWriter& file, const std::string& name, const Tensor& from,
                    Device& device) {
  for_each_chunk(from.elements(), [&](int64_t first, int64_t count) {
    const std::vector<float> values = download_values(device, from.rows(first, count));
    file.write(name, values.data(), values.size() * sizeof(float));
  });
}

// Throws UserError for a value that is not finite. `first` is the index of values[0] in the tensor.
void require_finite(const SafetensorsReader& file, const std::string& name,
                    std::span<const float> values, int64_t first = 0) {
  constexpr uint32_t kInfinity = 0x7f800000;
  const auto magnitude = [](float value) { return std::bit_cast<uint32_t>(value) & 0x7fffffff; };
  uint32_t largest = 0;  // over all values: a loop without an exit is vectorised
  for (const float value : values) largest = std::max(largest, magnitude(value));
  if (largest < kInfinity) return;
  const auto bad = std::ranges::find_if(values, [&](float v) { return magnitude(v) >= kInfinity; });
  throw UserError(
      "{}: tensor {} is {} at element {}, but must be finite in fp32; use an earlier checkpoint or "
      "another copy",
      file.path().string(), name, *bad, first + (bad - values.begin()));
}

void require_shape(const SafetensorsReader& file, const std::string& name,
                   const ParameterSpec& spec) {
  const SafetensorsEntry& entry = file.at(name);
  const std::vector<int64_t> want = dims_of(spec.shape);
  // A shorter context takes the first rows of longer position embeddings.
  const bool cut = spec.name == "wpe.weight" && entry.shape.size() == 2 &&
                   entry.shape[0] > want[0] && entry.shape[1] == want[1];
  if (entry.shape == want || cut) return;
  throw UserError("{}: tensor {} has shape {}, but the model wants {}", file.path().string(), name,
                  fmt::format("[{}]", fmt::join(entry.shape, ", ")), to_string(spec.shape));
}

// The biases that transformers expects even from a model without any.
std::vector<ParameterSpec> absent_biases(ModelConfig config) {
  if (config.bias) return {};
  config.bias = true;
  std::vector<ParameterSpec> absent;
  for (ParameterSpec& spec : parameter_specs(config)) {
    if (spec.name.ends_with(".bias")) absent.push_back(std::move(spec));
  }
  return absent;
}

std::vector<float> floats_of(const SafetensorsReader& file, const SafetensorsEntry& entry) {
  std::vector<float> values(entry.elements());
  file.read_as_float(entry.name, values.data(), entry.elements());
  return values;
}

// Opens a directory's weights. If they are in other files, the error names the first of these.
SafetensorsReader open_model(const fs::path& dir) {
  const auto has = [&](const char* name) { return fs::exists(fs::symlink_status(dir / name)); };
  if (has(kModelFile)) return SafetensorsReader(dir / kModelFile);
  if (has("model.safetensors.index.json")) {
    throw UserError(
        "{} holds its weights in several files (model.safetensors.index.json), but lathe reads one "
        "model.safetensors: save it again with transformers' save_pretrained(DIR, "
        "max_shard_size=\"100GB\")",
        dir.string());
  }
  for (const char* name :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"}) {
    if (!has(name)) continue;
    throw UserError(
        "{} holds {}, but lathe reads model.safetensors: load it with transformers' "
        "from_pretrained(DIR) and save it with save_pretrained(DIR, max_shard_size=\"100GB\")",
        dir.string(), name);
  }
  return SafetensorsReader(dir / kModelFile);  // throws
}

// What parameters are called in a file: GPT2LMHeadModel's "transformer.h.0..." is GPT2Model's
// "h.0...".
class FileNames {
 public:
  explicit FileNames(const SafetensorsReader& file) {
    const auto prefixed = [](const auto& entry) { return entry.name.starts_with("transformer."); };
    if (std::ranges::any_of(file.entries(), prefixed)) prefix_ = "transformer.";
    // Of two tied tensors, which share memory, some programs save only the first by name.
    only_head_ = file.find(prefix_ + "wte.weight") == nullptr && file.find(kHead) != nullptr;
  }
  std::string operator()(const std::string& parameter) const {
    return only_head_ && parameter == "wte.weight" ? kHead : prefix_ + parameter;
  }

 private:
  std::string prefix_;
  bool only_head_ = false;
};

// The first bias that a model without biases does not read and that is not all zeros, or nullptr.
const SafetensorsEntry* unread_bias(const SafetensorsReader& file, const ModelConfig& config) {
  const FileNames name(file);
  for (const ParameterSpec& spec : absent_biases(config)) {
    const SafetensorsEntry* entry = file.find(name(spec.name));
    if (entry == nullptr) continue;
    const auto is_zero = [](float value) { return value == 0; };
    if (!std::ranges::all_of(floats_of(file, *entry), is_zero)) return entry;
  }
  return nullptr;
}

// A head beside the embedding must equal it, because lathe ties the two.
void require_tied_head(const SafetensorsReader& file, const std::string& embedding) {
  const SafetensorsEntry* head = file.find(kHead);
  const SafetensorsEntry& wte = file.at(embedding);
  if (head == nullptr || head == &wte) return;
  const auto refuse = [&](const std::string& difference) {
    throw UserError(
        "{}: {} differs from {} ({}), but in lathe the two are one: give a model that ties them, "
        "or "
        "remove {} from the file if nothing uses it",
        file.path().string(), kHead, embedding, difference, kHead);
  };
  if (head->shape != wte.shape) {
    refuse(fmt::format("its shape is [{}], not [{}]", fmt::join(head->shape, ", "),
                       fmt::join(wte.shape, ", ")));
  }
  const std::vector<float> a = floats_of(file, *head), b = floats_of(file, wte);
  const auto [x, y] = std::ranges::mismatch(a, b);
  if (x != a.end()) refuse(fmt::format("element {} is {}, not {}", x - a.begin(), *x, *y));
}

// Causal masks in old files, and the tied head, which is compared elsewhere.
bool ignorable(const std::string& name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name == kHead;
}

// A token's id, or null: without the key transformers assumes 50256.
nlohmann::json id_or_null(std::optional<int32_t> id) {
  return id ? nlohmann::json(*id) : nlohmann::json();
}

// The GELU that Hugging Face's `activation_function` names, if lathe has it.
std::optional<Gelu> gelu_named(const nlohmann::json& name) {
  if (name == "gelu") return Gelu::exact;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Gelu::tanh;
  return std::nullopt;
}

}  // namespace

void initialize_parameters(const ParameterLayout& layout, uint64_t seed, int64_t begin,
                           const Tensor& to, Device& device, float std) {
  for (const Piece& piece : pieces_of(layout, begin, to.elements())) {
    ParameterSpec spec = piece.slot->spec;
    spec.init_std *= std / kInitStd;
    for_each_chunk(piece.count, [&](int64_t done, int64_t count) {
      const std::vector<float> values = initial_values(
          spec, seed, static_cast<uint32_t>(piece.number), piece.first + done, count);
      upload_values(device, to.rows(piece.local + done, count), values.data());
    });
  }
}

ModelWriter::ModelWriter(const fs::path& dir, const ModelConfig& config,
                         const ParameterLayout& layout, Device& device,
                         std::optional<int32_t> end_of_text)
    : layout_(layout),
      device_(device),
      absent_(absent_biases(config)),
      file_(dir / kModelFile, {{"format", "pt"}}) {
  const nlohmann::ordered_json json = {
      {"model_type", "gpt2"},
      {"architectures", {"GPT2LMHeadModel"}},
      {"n_layer", config.n_layer},
      {"n_head", config.n_head},
      {"n_embd", config.n_embd},
      {"n_positions", config.seq_len},
      {"n_ctx", config.seq_len},
      {"vocab_size", config.vocab_size},
      {"bos_token_id", id_or_null(end_of_text)},
      {"eos_token_id", id_or_null(end_of_text)},
      {"activation_function", config.gelu == Gelu::exact ? "gelu" : "gelu_new"},
      {"layer_norm_epsilon", 1e-5},
      {"resid_pdrop", config.dropout},
      {"embd_pdrop", config.dropout},
      {"attn_pdrop", config.dropout},
      {"tie_word_embeddings", true},
      {"torch_dtype", "float32"},
      {"lathe_bias", config.bias}};
  written_["config.json"] = write_file(dir / "config.json", json.dump(2) + "\n");
  for (const ParameterSlot& slot : layout.slots)
    file_.declare(slot.spec.name, DType::fp32, dims_of(slot.spec.shape));
  for (const ParameterSpec& spec : absent_)
    file_.declare(spec.name, DType::fp32, dims_of(spec.shape));
}

void ModelWriter::write(size_t b, const Tensor& all) {
  const Bucket& bucket = layout_.buckets[b];
  for (const Piece& piece : pieces_of(layout_, bucket.begin, bucket.elements())) {
    write_elements(file_, piece.slot->spec.name, all.rows(piece.local, piece.count), device_);
  }
}

WrittenFiles ModelWriter::finish() {
  for (const ParameterSpec& spec : absent_) {
    const std::vector<float> zeros(spec.shape.elements());
    file_.write(spec.name, zeros.data(), zeros.size() * sizeof(float));
  }
  written_[kModelFile] = file_.finish();
  return written_;
}

std::string tokenizer_config_json(const ModelConfig& config,
                                  std::optional<std::string_view> end_of_text) {
  nlohmann::ordered_json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                 {"model_max_length", config.seq_len},
                                 {"clean_up_tokenization_spaces", false}};
  if (end_of_text) json["bos_token"] = json["eos_token"] = *end_of_text;
  return json.dump(2) + "\n";
}

ModelConfig parse_model_config(std::string_view text, const std::string& file) {
  const nlohmann::json json = parse_json(text, /*throws=*/false);
  if (!json.is_object()) {
    throw UserError("{} is not a JSON object: give a model directory in Hugging Face's layout",
                    file);
  }
  const auto refuse = [&](const std::string& key, const std::string& what) {
    throw UserError("{}: {} {}", file, key, what);
  };
  const auto size = [&](const std::string& key) -> int64_t {
    if (!json.contains(key) || !json[key].is_number_integer())
      refuse(key, "is missing or not an integer");
    return json[key].get<int64_t>();
  };
  ModelConfig config;
  if (json.value("model_type", nlohmann::json()) != "gpt2") refuse("model_type", "is not gpt2");
  config.n_layer = size("n_layer");
  config.n_head = size("n_head");
  config.n_embd = size("n_embd");
  config.seq_len = size("n_positions");
  config.vocab_size = size("vocab_size");
  const auto activation = json.value("activation_function", nlohmann::json("gelu_new"));
  const std::optional<Gelu> gelu = gelu_named(activation);
  if (!gelu) {
    refuse("activation_function", "is " + shortened(activation.dump(), kMostQuotedBytes) +
                                      ", but lathe knows gelu and gelu_new");
  }
  config.gelu = *gelu;
  if (json.contains("layer_norm_epsilon") && json["layer_norm_epsilon"] != 1e-5) {
    refuse("layer_norm_epsilon", "is not 1e-5, which is all that lathe does");
  }
  // What other GPT-2 variants do and lathe does not: refuse rather than compute wrong numbers.
  const auto require = [&](const char* key, bool value) {
    if (json.contains(key) && json[key] != value) {
      refuse(key, fmt::format("is not {}, which is all that lathe does", value));
    }
  };
  require("scale_attn_weights", true);
  require("scale_attn_by_inverse_layer_idx", false);
  require("tie_word_embeddings", true);
  if (json.contains("n_inner") && !json["n_inner"].is_null() &&
      json["n_inner"] != 4 * config.n_embd) {
    refuse("n_inner", "is not 4 n_embd, which is all that lathe does");
  }
  if (json.contains("lathe_bias")) {
    if (!json["lathe_bias"].is_boolean()) refuse("lathe_bias", "is not true or false");
    config.bias = json["lathe_bias"].get<bool>();
  }
  if (json.contains("resid_pdrop")) {
    if (!json["resid_pdrop"].is_number()) refuse("resid_pdrop", "is not a number");
    config.dropout = json["resid_pdrop"].get<float>();
  }
  try {
    validate(config);
  } catch (const UserError& error) {
    throw UserError("{}: {}", file, error.what());
  }
  return config;
}

ModelConfig read_model_config(const fs::path& dir) {
  const fs::path path = dir / "config.json";
  ModelConfig config = parse_model_config(read_whole_file(path, 1 << 20), path.string());
  if (unread_bias(open_model(dir), config) != nullptr) config.bias = true;
  return config;
}

ModelReader::ModelReader(const fs::path& dir, const ModelConfig& config,
                         const ParameterLayout& layout)
    : config_(config), layout_(layout), file_(open_model(dir)) {
  const FileNames name(file_);
  for (const ParameterSlot& slot : layout.slots) names_.push_back(name(slot.spec.name));
}

void ModelReader::require_fit() const {
  std::vector<std::string> known = names_;
  const FileNames name(file_);
  for (const ParameterSpec& spec : absent_biases(config_)) known.push_back(name(spec.name));
  std::sort(known.begin(), known.end());
  for (const SafetensorsEntry& entry : file_.entries()) {
    if (!std::binary_search(known.begin(), known.end(), entry.name) && !ignorable(entry.name)) {
      throw UserError(
          "{}: tensor {} does not belong to this model (n_layer {}, n_embd {}, bias {})",
          file_.path().string(), json_quoted(entry.name), config_.n_layer, config_.n_embd,
          config_.bias);
    }
  }
  if (const SafetensorsEntry* bias = unread_bias(file_, config_)) {
    throw UserError("{}: tensor {} is not zero, but the model is to have no biases; give it biases",
                    file_.path().string(), bias->name);
  }
  for (size_t i = 0; i < names_.size(); ++i) require_shape(file_, names_[i], layout_.slots[i].spec);
  require_tied_head(file_, names_[ModelParameters::kWteSlot]);
}

std::string ModelReader::fingerprint() const {
  constexpr uint64_t kMostBytes = 4096;
  Hasher hasher;
  std::vector<char> bytes;
  for (const SafetensorsEntry& entry : file_.entries()) {
    const std::string header =
        fmt::format("{} {} {}\n", entry.name, name_of(entry.type), fmt::join(entry.shape, " "));
    hasher.update(header.data(), header.size());
    bytes.resize(std::min(entry.bytes(), kMostBytes));
    file_.read_bytes(entry, 0, bytes.data(), bytes.size());
    hasher.update(bytes.data(), bytes.size());
  }
  return hasher.digest().xxh128;
}

void ModelReader::read(int64_t begin, const Tensor& to, Device& device) const {
  std::vector<float> values;
  for (const Piece& piece : pieces_of(layout_, begin, to.elements())) {
    const std::string& name = names_[piece.number];
    for_each_chunk(piece.count, [&](int64_t done, int64_t count) {
      values.resize(static_cast<size_t>(count));
      file_.read_as_float(file_.at(name), piece.first + done, values.data(), count);
      require_finite(file_, name, values, piece.first + done);
      upload_values(device, to.rows(piece.local + done, count), values.data());
    });
  }
}

void read_model(const fs::path& dir, const ModelConfig& config, const ParameterLayout& layout,
                const Tensor& flat, Device& device) {
  const ModelReader model(dir, config, layout);
  model.require_fit();
  model.read(0, flat, device);
}

namespace {

std::string optimizer_file(int64_t rank, int64_t ranks) {
  return fmt::format("optimizer-{:05}-of-{:05}.safetensors", rank, ranks);
}

constexpr std::pair<const char*, OptimizerState> kMoments[] = {{"m.", OptimizerState::m},
                                                               {"v.", OptimizerState::v}};

// Copies a file's elements of a piece; returns how many there were.
int64_t read_piece(const SafetensorsReader& file, const std::string& prefix, OptimizerState state,
                   const Piece& piece, Optimizer& to, Device& device) {
  const std::string& parameter = piece.slot->spec.name;
  const SafetensorsEntry* entry = file.find(prefix + parameter);
  if (entry == nullptr) return 0;
  const auto place = file.metadata().find(parameter);
  const int64_t first = place == file.metadata().end() ? 0 : std::atoll(place->second.c_str());
  const int64_t total = piece.slot->spec.shape.elements();
  if (entry->type != SafetensorsType::F32 || first < 0 || first > total - entry->elements()) {
    throw UserError("{}: {} is no part of the {} elements of {}", file.path().string(),
                    json_quoted(entry->name), total, parameter);
  }
  const int64_t begin = std::max(first, piece.first);
  const int64_t end = std::min(first + entry->elements(), piece.first + piece.count);
  std::vector<float> values;
  for_each_chunk(std::max<int64_t>(0, end - begin), [&](int64_t done, int64_t count) {
    values.resize(static_cast<size_t>(count));
    file.read_bytes(*entry, static_cast<uint64_t>(begin - first + done) * sizeof(float),
                    values.data(), values.size() * sizeof(float));
    require_finite(file, entry->name, values, begin - first + done);
    // A mean of squares; AdamW takes its square root.
    if (state == OptimizerState::v && std::ranges::any_of(values, [](float v) { return v < 0; })) {
      throw UserError("{}: tensor {} has negative values; use another checkpoint",
                      file.path().string(), entry->name);
    }
    to.write(state, piece.local + begin - piece.first + done, count,
             [&](int64_t before, const Tensor& part) {
               upload_values(device, part, values.data() + before);
             });
  });
  return std::max<int64_t>(0, end - begin);
}

}  // namespace

WrittenFiles write_optimizer(const fs::path& dir, const ParameterStore& parameters,
                             Optimizer& optimizer, Device& device, int64_t rank) {
  const std::vector<Piece> pieces = pieces_of(parameters.layout(), parameters.share());
  std::map<std::string, std::string> places;
  for (const Piece& piece : pieces) {
    if (!piece.whole()) places[piece.slot->spec.name] = std::to_string(piece.first);
  }
  const std::string name = optimizer_file(rank, parameters.layout().ranks);
  SafetensorsWriter file(dir / name, places);
  for (const auto& [prefix, state] : kMoments) {
    for (const Piece& piece : pieces) {
      const ParameterSpec& spec = piece.slot->spec;
      file.declare(prefix + spec.name, DType::fp32,
                   piece.whole() ? dims_of(spec.shape) : std::vector<int64_t>{piece.count});
    }
  }
  for (const auto& [prefix, state] : kMoments) {
    for (const Piece& piece : pieces) {
      const std::string tensor = prefix + piece.slot->spec.name;
      optimizer.read(state, piece.local, piece.count, [&](int64_t, const Tensor& part) {
        write_elements(file, tensor, part, device);
      });
    }
  }
  return {{name, file.finish()}};
}

int64_t optimizer_ranks(const fs::path& dir, const Manifest& manifest) {
  std::vector<std::string> found;
  for (const auto& [name, digest] : manifest.files) {
    if (name.starts_with("optimizer-")) found.push_back(name);
  }
  const auto ranks = static_cast<int64_t>(found.size());
  for (int64_t rank = 0; rank < ranks; ++rank) {  // the manifest's names are sorted
    if (found[static_cast<size_t>(rank)] == optimizer_file(rank, ranks)) continue;
    throw UserError("{} lists {}, expected {}, so the checkpoint is not whole; use another one",
                    (dir / "manifest.json").string(), found[static_cast<size_t>(rank)],
                    optimizer_file(rank, ranks));
  }
  if (ranks == 0) {
    throw UserError(
        "{} does not list optimizer-00000-of-00001.safetensors, so the checkpoint is not whole; "
        "use another one",
        (dir / "manifest.json").string());
  }
  return ranks;
}

void read_optimizer(const fs::path& dir, int64_t ranks, const ParameterStore& parameters,
                    Optimizer& optimizer, Device& device) {
  std::vector<SafetensorsReader> files;
  for (int64_t rank = 0; rank < ranks; ++rank)
    files.emplace_back(dir / optimizer_file(rank, ranks));
  std::vector<ShardPart> owned;
  for (const OwnedPart& part : parameters.owned()) owned.push_back(part.part);
  for (const Piece& piece : pieces_of(parameters.layout(), owned)) {
    for (const auto& [prefix, state] : kMoments) {
      int64_t found = 0;
      for (const SafetensorsReader& file : files)
        found += read_piece(file, prefix, state, piece, optimizer, device);
      if (found == piece.count) continue;
      throw UserError("{}: of {}{}, {} of {} elements are there", dir.string(), prefix,
                      piece.slot->spec.name, found, piece.count);
    }
  }
}

}  // namespace lathe
