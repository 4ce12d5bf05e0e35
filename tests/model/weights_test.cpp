// Reading and writing weights: lathe must read what other software makes of a model, or refuse it
// by name.
#include "src/model/weights.h"
#include "src/io/json.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "src/io/safetensors.h"
#include "tests/data/temp_dir.h"
#include "tests/model/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

struct FileTensor {
  std::vector<int64_t> shape;
  std::vector<double> values;
  DType dtype = DType::fp32;
};
using FileTensors = std::map<std::string, FileTensor>;

FileTensors tensors_of(const fs::path& path) {
  const SafetensorsReader file(path);
  FileTensors tensors;
  for (const SafetensorsEntry& entry : file.entries()) {
    std::vector<float> values(entry.elements());
    file.read_as_float(entry.name, values.data(), entry.elements());
    tensors[entry.name] = {entry.shape, {values.begin(), values.end()}};
  }
  return tensors;
}

void write_tensors(const fs::path& path, const FileTensors& tensors,
                   const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  SafetensorsWriter file(path, metadata);
  for (const auto& [name, tensor] : tensors) file.declare(name, tensor.dtype, tensor.shape);
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype == DType::fp64) {
      file.write(name, tensor.values.data(), tensor.values.size() * sizeof(double));
    } else {
      const std::vector<float> narrow(tensor.values.begin(), tensor.values.end());
      file.write(name, narrow.data(), narrow.size() * sizeof(float));
    }
  }
  file.finish();
}

ModelConfig small(bool bias) {
  return {.n_layer = 2, .n_head = 2, .n_embd = 8, .vocab_size = 11, .seq_len = 6, .bias = bias};
}

struct SavedModel : Harness {
  explicit SavedModel(const ModelConfig& config)
      : Harness(config, {.dtype = DType::fp32, .batch_size = 1, .seq_len = config.seq_len}) {}

  fs::path save(const std::string& name, std::optional<int32_t> end_of_text = {}) {
    const fs::path dir = scratch / name;
    fs::create_directory(dir);
    const ParameterLayout& layout = parameters.layout();
    ModelWriter writer(dir, model.config(), layout, *device, end_of_text);
    for (size_t b = 0; b < layout.buckets.size(); ++b)
      writer.write(b, masters().rows(layout.buckets[b].begin, layout.buckets[b].elements()));
    writer.finish();
    return dir;
  }
  // The same with another model.safetensors.
  fs::path save(const std::string& name, const std::function<void(FileTensors&)>& change) {
    const fs::path dir = save(name);
    FileTensors tensors = tensors_of(dir / "model.safetensors");
    change(tensors);
    write_tensors(dir / "model.safetensors", tensors);
    return dir;
  }

  TempDir scratch;
};

// The parameters of a model read from a directory, by name.
FileTensors read_back(const fs::path& dir) {
  Harness h(read_model_config(dir), {.dtype = DType::fp32, .batch_size = 1, .seq_len = 6}, 8);
  read_model(dir, h.model.config(), h.parameters.layout(), h.masters(), *h.device);
  FileTensors tensors;
  for (const ParameterSlot& slot : h.parameters.layout().slots) {
    tensors[slot.spec.name] = {
        {slot.spec.shape.dim.begin(), slot.spec.shape.dim.begin() + slot.spec.shape.rank},
        values_of(*h.device, h.masters().rows(slot.offset, slot.spec.shape.elements()))};
  }
  return tensors;
}

void expect_equal(const FileTensors& a, const FileTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_EQ(tensor.values, b.at(name).values) << name;
  }
}

std::string refusal(const fs::path& dir) {
  return user_error([&] { read_back(dir); });
}

TEST(Weights, BiasesThatOtherSoftwareHasTrainedAreRead) {
  SavedModel model(small(false));
  const fs::path zeros = model.save("zeros");
  EXPECT_FALSE(read_model_config(zeros).bias);
  for (const char* name :
       {"h.0.ln_1.bias", "h.1.attn.c_attn.bias", "h.1.mlp.c_fc.bias", "ln_f.bias"}) {
    SCOPED_TRACE(name);
    FileTensors expected;
    const fs::path dir = model.save(name, [&](FileTensors& tensors) {
      tensors.at(name).values[3] = 0.25;
      expected = tensors;
    });
    EXPECT_TRUE(read_model_config(dir).bias);
    expect_equal(read_back(dir), expected);
    // A caller that planned a model without biases must not get one with biases.
    Harness h(small(false), {.dtype = DType::fp32, .batch_size = 1, .seq_len = 6});
    const std::string sentence = user_error(
        [&] { read_model(dir, small(false), h.parameters.layout(), h.masters(), *h.device); });
    expect_contains(sentence, std::string("tensor ") + name + " is not zero");
  }
  // A file without the biases that lathe does not need is as good as one with zeros.
  const fs::path none = model.save("none", [](FileTensors& tensors) {
    std::erase_if(tensors, [](const auto& tensor) { return tensor.first.ends_with(".bias"); });
  });
  EXPECT_FALSE(read_model_config(none).bias);
  expect_equal(read_back(none), read_back(zeros));
}

// Ranks that read different files notice.
TEST(Weights, FilesAreToldApart) {
  SavedModel model(small(true));
  const auto fingerprint = [&](const fs::path& dir) {
    return ModelReader(dir, small(true), model.parameters.layout()).fingerprint();
  };
  const std::string first = fingerprint(model.save("first"));
  EXPECT_EQ(first, fingerprint(model.save("second")));
  for (const char* name : {"wte.weight", "h.1.mlp.c_fc.bias", "ln_f.weight"}) {
    const fs::path other =
        model.save(name, [&](FileTensors& tensors) { tensors.at(name).values[7] += 1e-3; });
    EXPECT_NE(first, fingerprint(other)) << name;
  }
}

// GPT2LMHeadModel's names and GPT2Model's, a head beside the embedding, and a head in its place.
TEST(Weights, TheHeadIsTheEmbedding) {
  SavedModel model(small(true));
  const FileTensors expected = read_back(model.save("plain"));
  for (const std::string prefix : {"", "transformer."}) {
    SCOPED_TRACE(prefix);
    const auto save = [&](const std::string& name,
                          const std::function<void(FileTensors&)>& change) {
      return model.save(prefix + name, [&](FileTensors& tensors) {
        FileTensors renamed;
        for (const auto& [parameter, tensor] : tensors) renamed[prefix + parameter] = tensor;
        tensors = renamed;
        change(tensors);
      });
    };
    const std::string wte = prefix + "wte.weight";
    expect_equal(read_back(save("without", [](FileTensors&) {})), expected);
    expect_equal(read_back(save("same", [&](FileTensors& t) { t["lm_head.weight"] = t[wte]; })),
                 expected);
    expect_equal(read_back(save("in double",
                                [&](FileTensors& t) {
                                  t["lm_head.weight"] = t[wte];
                                  t["lm_head.weight"].dtype = DType::fp64;
                                })),
                 expected);
    expect_equal(read_back(save("alone",
                                [&](FileTensors& t) {
                                  t["lm_head.weight"] = t[wte];
                                  t.erase(wte);
                                })),
                 expected);
    std::string sentence = refusal(save("other", [&](FileTensors& t) {
      t["lm_head.weight"] = t[wte];
      t["lm_head.weight"].values[5] += 1;
    }));
    expect_contains(sentence, "lm_head.weight differs from " + wte + " (element 5 is ");
    sentence = refusal(save("shorter", [&](FileTensors& t) {
      t["lm_head.weight"] = {{10, 8}, std::vector<double>(80)};
    }));
    expect_contains(sentence, "its shape is [10, 8], not [11, 8]");
    sentence = refusal(save("neither", [&](FileTensors& t) { t.erase(wte); }));
    expect_contains(sentence, "there is no tensor \"" + wte + "\"");
  }
}

TEST(Weights, WhatIsNotFiniteIsNamed) {
  SavedModel model(small(true));
  int number = 0;
  for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const char* name : {"wte.weight", "wpe.weight", "h.1.attn.c_proj.bias", "ln_f.weight"}) {
      const fs::path dir = model.save(std::to_string(++number), [&](FileTensors& tensors) {
        tensors.at(name).values[7] = value;
      });
      expect_contains(refusal(dir), fmt::format("{}: tensor {} is {} at element 7",
                                                (dir / "model.safetensors").string(), name, value));
    }
  }
  const fs::path wide = model.save("beyond fp32", [&](FileTensors& tensors) {
    tensors.at("ln_f.bias").dtype = DType::fp64;
    tensors.at("ln_f.bias").values[2] = 1e300;
  });
  expect_contains(refusal(wide), "tensor ln_f.bias is inf at element 2");
}

TEST(Weights, MomentsThatAreNotFiniteAreNamed) {
  SavedModel model(small(true));
  const fs::path dir = model.save("moments");
  const auto read = [&] {
    read_optimizer(dir, 1, model.parameters, model.optimizer, *model.device);
  };
  write_optimizer(dir, model.parameters, model.optimizer, *model.device);
  read();
  const fs::path path = dir / "optimizer-00000-of-00001.safetensors";
  const FileTensors good = tensors_of(path);
  for (const auto& [name, value, sentence] :
       std::vector<std::tuple<std::string, double, std::string>>{
           {"m.wte.weight", std::nan(""), "tensor m.wte.weight is nan at element 4"},
           {"m.ln_f.bias", -HUGE_VAL, "tensor m.ln_f.bias is -inf at element 4"},
           {"v.h.0.mlp.c_fc.weight", HUGE_VAL, "tensor v.h.0.mlp.c_fc.weight is inf at element 4"},
           {"v.wpe.weight", -1e-9, "tensor v.wpe.weight has negative values"}}) {
    FileTensors bad = good;
    bad.at(name).values[4] = value;
    write_tensors(path, bad, {});
    const std::string found = user_error(read);
    expect_contains(found, path.string());
    expect_contains(found, sentence);
  }
}

// Without these keys transformers assumes 50256, whatever the vocabulary.
TEST(Weights, TheTokenThatEndsATextIsInConfigJson) {
  SavedModel model(small(true));
  const auto config_of = [](const fs::path& dir) {
    return parse_json(read_text(dir / "config.json"));
  };
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    EXPECT_EQ(config_of(model.save("nine", 9)).at(key), 9);
    EXPECT_TRUE(config_of(model.save("no such token")).at(key).is_null());
  }
  const auto tokenizer_config = [](std::optional<std::string_view> end_of_text) {
    return parse_json(tokenizer_config_json(small(true), end_of_text));
  };
  nlohmann::json expected = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                             {"model_max_length", 6},
                             {"clean_up_tokenization_spaces", false}};
  EXPECT_EQ(tokenizer_config({}), expected);
  expected["bos_token"] = expected["eos_token"] = "</s>";
  EXPECT_EQ(tokenizer_config("</s>"), expected);
}

TEST(Weights, OtherKindsOfFilesAreNamed) {
  SavedModel model(small(true));
  for (const char* file : {"model.safetensors.index.json", "pytorch_model.bin",
                           "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"}) {
    const fs::path dir = model.save(std::string("only ") + file);
    fs::remove(dir / "model.safetensors");
    write_text(dir / file, "{}");
    const std::string sentence = user_error([&] { read_model_config(dir); });
    expect_contains(sentence, dir.string() + " holds ");
    expect_contains(sentence, file);
    expect_contains(sentence, "save_pretrained(DIR, max_shard_size=\"100GB\")");
    // Beside the file that lathe reads, they do not matter.
    const fs::path both = model.save(std::string("also ") + file);
    write_text(both / file, "{}");
    read_back(both);
  }
  const fs::path none = model.save("nothing");
  fs::remove(none / "model.safetensors");
  expect_contains(refusal(none), "cannot open " + (none / "model.safetensors").string());
}

}  // namespace
}  // namespace lathe::testing
