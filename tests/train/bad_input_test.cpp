// Bad input of every kind gives one sentence that names it and the right exit code, and loses no
// file.
#include <unistd.h>

#include <cstring>

#include "kernels/device/device.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;

struct Bad {
  std::string name;
  Command command;
  std::vector<std::string> parts;  // of the message: the file or flag
  int exit_code = 2;
  long max_file_bytes = 0;
};

std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_symlink() && entry.is_regular_file())
      files[entry.path()] = read_text(entry.path());
  }
  return files;
}

std::string little_endian(uint64_t value) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &value, 8);
  return bytes;
}

class BadInput : public TrainTest {
 protected:
  void SetUp() override {
    expect_success(run(train_command(with(tiny(scratch / "run"), {{"steps", "2"}}))));
    checkpoint = scratch / "run/step-00000002";
  }

  // Runs them all. Every program must refuse, and all files must stay unchanged.
  void expect_refused(const std::vector<Bad>& table) {
    const auto before = contents(scratch.path()), data_before = contents(data());
    for (const Bad& bad : table) {
      SCOPED_TRACE(bad.name);
      const std::string program = fs::path(bad.command[0]).filename();
      expect_refusal(run(bad.command, {.max_file_bytes = bad.max_file_bytes}), bad.exit_code,
                     program, bad.parts);
      std::error_code ignored;
      fs::remove_all(scratch / "out", ignored);
    }
    EXPECT_TRUE(contents(scratch.path()) == before) << "a file was changed";
    EXPECT_TRUE(contents(data()) == data_before) << "the data were changed";
  }

  Bad flag(const std::string& name, const std::string& value, const std::string& part = "") {
    return {name + " " + value,
            train_command(with(tiny(scratch / "out"), {{name, value}})),
            {part.empty() ? "--" + name : part}};
  }
  Bad train(const std::string& name, const Flags& flags, const std::vector<std::string>& parts) {
    return {name, train_command(with(tiny(scratch / "out"), flags)), parts};
  }
  Bad sample(const std::string& name, const Flags& flags, const std::vector<std::string>& parts) {
    return {name, sample_command(with({{"checkpoint", checkpoint}, {"tokens", "2"}}, flags)),
            parts};
  }

  // A copy of the data with one shard changed.
  template <typename Change>
  fs::path broken_data(const std::string& name, const std::string& split, const Change& change) {
    const fs::path copy = scratch / ("data " + name);
    fs::copy(data(), copy, fs::copy_options::recursive);
    for (const auto& entry : fs::directory_iterator(copy)) {
      if (!entry.path().filename().string().starts_with(split)) continue;
      std::string shard = read_text(entry.path());
      change(shard);
      write_text(entry.path(), shard);
    }
    return copy;
  }
  // A model directory of another program, without a manifest.
  fs::path model_with(const std::string& name, const std::string& weights) {
    const fs::path model = scratch / ("model " + name);
    fs::create_directory(model);
    for (const char* file : {"config.json", "tokenizer.json"}) {
      fs::copy_file(checkpoint / file, model / file);
    }
    write_text(model / "model.safetensors", weights);
    return model;
  }

  fs::path checkpoint;
};

TEST_F(BadInput, Flags) {
  const fs::path file = write_text(scratch / "file", "text");
  std::vector<Bad> table = {
      flag("n-layer", "0"),
      flag("n-layer", "-1"),
      flag("n-layer", "99999999999999999999"),
      flag("n-head", "3", "--n-embd 16"),
      flag("n-head", "0"),
      flag("n-embd", "1000000"),
      flag("n-embd", "1e3", "'1e3' is no whole number in decimal digits from 1 to 65536"),
      flag("vocab-size", "70000"),
      flag("vocab-size", "3"),
      flag("seq-len", "0"),
      flag("seq-len", "9000000"),
      flag("seq-len", "100000", "train"),
      flag("batch-size", "-1"),
      flag("batch-size", "0"),
      flag("batch-size", "1099511627776"),
      flag("total-batch-size", "17"),
      flag("total-batch-size", "1099511627776", "micro-steps"),
      flag("steps", "abc"),
      flag("steps", "-3"),
      flag("lr", "nan"),
      flag("lr", "inf"),
      flag("lr", "-1"),
      flag("min-lr", "1"),
      flag("dropout", "1"),
      flag("dropout", "nan"),
      flag("dropout", "-0.5"),
      flag("beta1", "nan"),
      flag("beta2", "1"),
      flag("eps", "0"),
      flag("weight-decay", "inf"),
      flag("grad-clip", "nan"),
      flag("seed", "-1"),
      flag("seed", "x"),
      flag("bias", "maybe"),
      flag("gelu", "relu"),
      flag("dtype", "fp8"),
      flag("device", "tpu"),
      flag("recompute", "all"),
      flag("schedule", "none"),
      flag("sampling", "all"),
      flag("keep", "0"),
      flag("threads", "-1"),
      flag("max-skipped-steps", "0"),
      flag("stochastic-rounding", "", "--dtype"),  // of fp32
      flag("model", "gpt5"),
      flag("bogus", "1"),
      flag("data", scratch / "none", "none"),
      flag("data", file, "file"),
      flag("data", scratch.path(), scratch.path()),
      flag("init", scratch / "none", "none"),
      flag("resume", scratch / "none", "none"),
      flag("resume", scratch.path(), "manifest.json"),
      flag("resume", "sometimes"),
      flag("config", scratch / "none.toml", "none.toml"),
      flag("config", scratch.path(), scratch.path()),
      flag("out", file / "x", file.string()),
      flag("out", file, "file"),
      flag("trace", scratch / "none/t", "none/t"),
      flag("out", scratch / "caf\xe9", "is not UTF-8"),
      flag("warmup-steps", "13", "--lr-decay-steps 12 is below --warmup-steps 13"),
      flag("eval-only", "", "--out " + (scratch / "out").string() + " holds no checkpoint"),
      train("nothing to evaluate", {{"eval-only", ""}, {"resume", "never"}},
            {"--eval-only has no weights"}),
      flag("profile", "0:1", "A:B"),
      flag("profile", "2:2", "1 <= A < B"),
      flag("profile", "2:99", "--steps"),
      flag("profile", "-3:-1", "'-3:-1'"),
      flag("profile", "1:2:3", "A:B"),
      flag("profile", "3", "A:B"),
      {"a trace and a profile",
       {LATHE_TRAIN, "--data", data().string(), "--trace", "t", "--profile", "1:2"},
       {"--trace", "--profile"}},
      flag("out", "/proc/lathe/out", "/proc/lathe"),
      train("too large for the machine",
            {{"n-layer", "96"}, {"n-head", "128"}, {"n-embd", "16384"}},
            {"memory", "--batch-size"}),
      {"no data", {LATHE_TRAIN, "--model", "shakespeare-cpu"}, {"--data"}},
      {"a flag twice", {LATHE_TRAIN, "--steps", "1", "--steps", "2"}, {"--steps"}},
      {"no value", {LATHE_TRAIN, "--steps"}, {"--steps"}},
      {"a word", {LATHE_TRAIN, "word"}, {"word"}},
  };
  if (cuda_device_count() == 0) {  // built without CUDA, no driver or no GPU
    table.push_back(flag("device", "cuda"));
    table.push_back(sample("device cuda", {{"device", "cuda"}}, {"--device cuda", "--device cpu"}));
  }
  if (::geteuid() != 0) {  // root may do anything
    fs::create_directory(scratch / "read-only");
    fs::permissions(scratch / "read-only", fs::perms::owner_read | fs::perms::owner_exec);
    table.push_back(flag("out", scratch / "read-only/out", "read-only"));
  }
  expect_refused(table);
}

// The model of --init determines the sizes: flags that contradict it, or have no effect, are
// refused.
TEST_F(BadInput, WhatContradictsAModel) {
  std::vector<Bad> table;
  for (const auto& [flag, value] : Flags{{"n-layer", "2"},
                                         {"n-head", "4"},
                                         {"n-embd", "32"},
                                         {"vocab-size", "256"},
                                         {"bias", "1"},
                                         {"gelu", "tanh"}}) {
    table.push_back(
        train(flag, {{"init", checkpoint}, {flag, value}},
              {"--" + flag + " is " + (value == "1" ? "true" : value), checkpoint.string()}));
  }
  table.push_back(
      train("init-std", {{"init", checkpoint}, {"init-std", "0.1"}}, {"--init-std does nothing"}));
  const fs::path file =
      write_text(scratch / "both.toml", "n-layer = 3\ninit = \"" + checkpoint.string() + "\"\n");
  Flags flags = with(tiny(scratch / "out"), {{"config", file}});
  flags.erase("n-layer");
  table.push_back({"in a file", train_command(flags), {"--n-layer is 3", checkpoint.string()}});
  expect_refused(table);
  // --init overrides sizes in a file without an error, and the model's own sizes never contradict
  // it.
  write_text(scratch / "both.toml", "n-layer = 3\n");
  expect_success(run(train_command(with(flags, {{"init", checkpoint}, {"steps", "1"}}))));
}

TEST_F(BadInput, DirectoriesThatCannotBeRead) {
  fs::create_symlink("loop", scratch / "loop");
  const fs::path in_a_loop = broken_data("in a loop", "none", [](std::string&) {});
  fs::remove(in_a_loop / "tokenizer.json");
  fs::create_symlink("tokenizer.json", in_a_loop / "tokenizer.json");
  std::vector<Bad> table = {flag("data", scratch / "loop", "loop: Too many levels"),
                            flag("out", scratch / "loop", "loop: Too many levels"),
                            flag("resume", scratch / "loop", "loop: Too many levels"),
                            flag("data", in_a_loop, "tokenizer.json: Too many levels")};
  if (::geteuid() != 0) {  // root may do anything
    for (const auto& [name, kept] : std::map<std::string, fs::perms>{
             {"closed", fs::perms::none}, {"names alone", fs::perms::owner_read}}) {
      const fs::path copy = broken_data(name, "none", [](std::string&) {});
      fs::permissions(copy, kept);
      table.push_back(flag("data", copy, "Permission denied"));
    }
  }
  expect_refused(table);
}

TEST_F(BadInput, ConfigurationFiles) {
  std::vector<Bad> table;
  for (const auto& [text, part] : std::map<std::string, std::string>{
           {"bogus = 3\n", "bogus"},
           {"[model]\nn-layer = 3\n", "sections"},
           {"steps = \"abc\"\n", "--steps"},
           {"steps = [1, 2]\n", "--steps"},
           {"steps 12\n", "--config"},
           {"= 12\n", "--config"},
           {"dropout = 7\n", "--dropout"},
           {"\x1b[2Jbogus = 3\n", "line 1"},
           {std::string(1 << 19, 'x') + " = 3\n", "xxx"},
           {std::string(1 << 20, 'x') + " = 3\n", "has more than 1048576 bytes"},
           {"dtype = \"\x1b[2J" + std::string(1 << 19, 'x') + "\"\n", "--dtype"},
           {std::string("\x00\xff\x01 = [[[", 9), "--config"}}) {
    const std::string number = std::to_string(table.size());
    const fs::path file = write_text(scratch / (number + ".toml"), text);
    Flags flags = tiny(scratch / "out");
    for (const char* key : {"steps", "n-layer"}) flags.erase(key);
    table.push_back({text, train_command(with(flags, {{"config", file}})), {part}});
  }
  expect_refused(table);
}

TEST_F(BadInput, Shards) {
  const auto flags = [](const fs::path& directory) { return Flags{{"data", directory}}; };
  const auto tokens = [](uint16_t token) {
    return [token](std::string& shard) {
      for (size_t at = 1024; at < shard.size(); at += 2) std::memcpy(&shard[at], &token, 2);
    };
  };
  std::vector<Bad> table;
  for (const std::string split : {"train", "val"}) {
    const auto add = [&](const std::string& name, const auto& change) {
      table.push_back(train(split + " " + name,
                            flags(broken_data(split + " " + name, split, change)), {split}));
    };
    add("empty", [](std::string& shard) { shard.clear(); });
    add("half a header", [](std::string& shard) { shard.resize(500); });
    add("truncated", [](std::string& shard) { shard.pop_back(); });
    add("oversized", [](std::string& shard) { shard += "xx"; });
    add("wrong magic", [](std::string& shard) { shard[0] ^= 1; });
    add("wrong version", [](std::string& shard) { shard[4] = 9; });
    add("negative count", [](std::string& shard) { shard[11] = '\xff'; });
    add("token beyond the vocabulary", tokens(60000));
    add("missing", [](std::string&) {});
    for (const auto& entry : fs::directory_iterator(scratch / ("data " + split + " missing"))) {
      if (entry.path().filename().string().starts_with(split)) fs::remove(entry);
    }
  }
  // Too little for one window.
  table.push_back(train("too little",
                        flags(broken_data("few", "train",
                                          [](std::string& shard) {
                                            shard.resize(1024 + 2 * 8);
                                            shard[8] = 8;
                                            shard[9] = shard[10] = shard[11] = 0;
                                          })),
                        {"train", "--seq-len"}));
  const std::string huge = "\\u001b[2J" + std::string(1 << 20, 'x');
  const auto bpe = [](const std::string& vocab, const std::string& merges) {
    return R"({"model": {"type": "BPE", "vocab": {)" + vocab + R"(}, "merges": [)" + merges + "]}}";
  };
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{\"type\": 3}"),
        "{\"" + huge, bpe("\"" + huge + "\": true", ""), bpe("\"" + huge + "\": -1", ""),
        bpe("\"a\": 0, \"" + huge + "\": 0", ""), bpe("\"a\": 0", "\"" + huge + "\""),
        bpe("\"a\": 0", "\"a " + huge + "\"")}) {
    const fs::path copy = broken_data(std::string("tokenizer ") + std::to_string(table.size()),
                                      "none", [](std::string&) {});
    write_text(copy / "tokenizer.json", text);
    table.push_back(train(text, flags(copy), {"tokenizer.json"}));
  }
  const fs::path shards_alone = broken_data("shards alone", "none", [](std::string&) {});
  fs::remove(shards_alone / "tokenizer.json");
  table.push_back(
      train("no tokenizer", flags(shards_alone), {"--vocab-size", shards_alone.string()}));
  expect_refused(table);
}

TEST_F(BadInput, BitFlipsInEveryFileOfACheckpoint) {
  std::vector<Bad> table;
  int number = 0;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    const std::string name = entry.path().filename();
    const size_t size = fs::file_size(entry.path());
    for (const size_t at : {size_t{0}, size / 3, size / 2, size - 2}) {
      const fs::path copy =
          scratch / (std::string("flip ") + std::to_string(++number)) / "step-00000002";
      fs::create_directories(copy.parent_path());
      fs::copy(checkpoint, copy);
      std::string file = read_text(copy / name);
      file[at] ^= 1 << (at % 8);
      write_text(copy / name, file);
      const std::string what = name + " at " + std::to_string(at);
      table.push_back(train("resume " + what, {{"resume", copy}}, {copy.string()}));
      if (name.starts_with("optimizer-")) continue;  // not needed to use the model
      table.push_back(train("init " + what, {{"init", copy}}, {copy.string()}));
      table.push_back(sample("sample " + what, {{"checkpoint", copy}}, {copy.string()}));
    }
    const fs::path copy = scratch / ("without " + name) / "step-00000002";
    fs::create_directories(copy.parent_path());
    fs::copy(checkpoint, copy);
    fs::remove(copy / name);
    table.push_back(train("resume without " + name, {{"resume", copy}}, {copy.string()}));
  }
  EXPECT_GE(number, 20);
  expect_refused(table);
}

TEST_F(BadInput, ARunIsNotBegunAnewOverADamagedOne) {
  const fs::path out = scratch / "run";
  std::string file = read_text(checkpoint / "trainer.json");
  file[20] ^= 1;
  write_text(checkpoint / "trainer.json", file);
  const auto before = contents(out);
  const ProcessResult result = run(train_command(tiny(out)));
  EXPECT_EQ(result.exit_code, 2);
  expect_contains(result.err, "trainer.json");  // why the checkpoint was skipped
  expect_contains(result.err, "\ntrain: --out ");
  expect_contains(result.err, out.string() + " holds no valid checkpoint");
  EXPECT_TRUE(contents(out) == before);
}

TEST_F(BadInput, HostileModels) {
  const std::string good = read_text(checkpoint / "model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, good.data(), 8);
  const auto with_header = [&](const std::string& header, const std::string& data) {
    return little_endian(header.size()) + header + data;
  };
  const std::string header = good.substr(8, length), values = good.substr(8 + length);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = header;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from << " in " << header.substr(0, 300);
    return with_header(at == std::string::npos ? "" : text.replace(at, from.size(), to), values);
  };
  std::vector<Bad> table;
  for (const auto& [name, weights] : std::map<std::string, std::string>{
           {"empty", ""},
           {"seven bytes", good.substr(0, 7)},
           {"huge header", little_endian(uint64_t{1} << 63) + good.substr(8)},
           {"header beyond the file", little_endian(good.size()) + good.substr(8)},
           {"no JSON", with_header("{{{{", values)},
           {"not an object", with_header("[1]", values)},
           {"deep", with_header(std::string(100000, '['), values)},
           {"truncated", good.substr(0, good.size() - 1)},
           {"oversized", good + "x"},
           {"renamed", replaced("wpe.weight", "wpe.weighs")},
           {"a huge name", replaced("wpe.weight", "wpe\\u001b[2J" + std::string(1 << 20, 'x'))},
           {"a huge type", replaced("\"F32\"", "\"" + std::string(1 << 20, 'x') + "\"")},
           {"a huge key", replaced("\"dtype\"", "\"" + std::string(1 << 20, 'x') + "\"")},
           {"negative offset", replaced("[0,", "[-4,")},
           {"huge shape", replaced("\"shape\":[", "\"shape\":[9223372036854775807,9,")},
           {"another type", replaced("\"F32\"", "\"I32\"")},
           {"no such type", replaced("\"F32\"", "\"F31\"")}}) {
    const fs::path model = model_with(name, weights);
    table.push_back(train("init " + name, {{"init", model}}, {"model.safetensors"}));
    table.push_back(sample("sample " + name, {{"checkpoint", model}}, {"model.safetensors"}));
  }
  const std::string config = read_text(checkpoint / "config.json");
  for (const auto& [from, to] : std::map<std::string, std::string>{
           {"\"n_layer\": 1", "\"n_layer\": 2"},
           {"\"n_layer\": 1,", "\"n_layer\": 0,"},
           {"\"n_head\": 2", "\"n_head\": 3"},
           {"\"n_embd\": 16", "\"n_embd\": 1e99"},
           {"\"n_positions\": 8", "\"n_positions\": 18446744073709551615"},
           {"\"model_type\": \"gpt2\"", "\"model_type\": \"llama\""},
           {"\"gelu\"", "\"\\u001b[2J" + std::string(1 << 19, 'x') + "\""},
           {"{", ""}}) {
    const fs::path model = model_with(std::string("config ") + std::to_string(table.size()), good);
    std::string text = config;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    write_text(model / "config.json", text);
    table.push_back(train("init " + to, {{"init", model}}, {model.string()}));
    table.push_back(sample("sample " + to, {{"checkpoint", model}}, {model.string()}));
  }
  table.push_back(train("context beyond the model's",
                        {{"init", model_with("fine", good)}, {"seq-len", "9"}},
                        {"--seq-len 9", "8"}));
  expect_refused(table);
}

TEST_F(BadInput, ModelsInOtherFiles) {
  std::vector<Bad> table;
  for (const char* file : {"model.safetensors.index.json", "pytorch_model.bin"}) {
    const fs::path model = model_with(file, "");
    fs::rename(model / "model.safetensors", model / file);
    const std::vector<std::string> parts = {model.string() + " holds", file, "save_pretrained"};
    table.push_back(train(std::string("init ") + file, {{"init", model}}, parts));
    table.push_back(sample(std::string("sample ") + file, {{"checkpoint", model}}, parts));
  }
  expect_refused(table);
}

// After save_pretrained() into a checkpoint, config.json and model.safetensors are those of
// transformers, but the manifest lists the old files.
TEST_F(BadInput, ACheckpointThatTransformersHasSavedOver) {
  const fs::path copy = scratch / "copy" / "step-00000002";
  fs::create_directory(copy.parent_path());
  fs::copy(checkpoint, copy);
  std::string config = read_text(copy / "config.json");
  write_text(copy / "config.json",
             config.replace(config.rfind('}'), 1, ", \"transformers_version\": \"5.24.0\"}"));
  std::string weights = read_text(copy / "model.safetensors");
  poke(weights, "ln_f.weight", 0, {0.5f});
  write_text(copy / "model.safetensors", weights);
  const std::vector<std::string> parts = {copy.string() + " was saved over by transformers",
                                          "remove " + (copy / "manifest.json").string()};
  expect_refused({train("resume", {{"resume", copy}}, parts),
                  train("init", {{"init", copy}}, parts),
                  sample("sample", {{"checkpoint", copy}}, parts)});
  const ProcessResult result = run(train_command(tiny(copy.parent_path())));
  EXPECT_EQ(result.exit_code, 2);
  expect_contains(result.err, parts[0]);
  expect_contains(result.err, "\ntrain: --out ");
  // The advice in the message works.
  fs::remove(copy / "manifest.json");
  expect_success(run(train_command(with(tiny(scratch / "out"), {{"init", copy}}))));
  expect_success(run(sample_command({{"checkpoint", copy}, {"tokens", "2"}})));
}

TEST_F(BadInput, Sampling) {
  expect_refused(
      {sample("no checkpoint", {{"checkpoint", scratch / "none"}}, {"none"}),
       sample("a run's directory", {{"checkpoint", scratch / "run"}}, {"config.json"}),
       sample("no prompt", {{"prompt", std::string("@") + (scratch / "none").string()}}, {"none"}),
       sample("directory", {{"prompt", std::string("@") + scratch.path().string()}},
              {scratch.path().string()}),
       sample("unknown character", {{"prompt", "\xe2\x82\xac"}}, {"U+20AC"}),
       sample("tokens", {{"tokens", "-1"}}, {"--tokens"}),
       sample("temperature", {{"temperature", "nan"}}, {"--temperature"}),
       sample("cold", {{"temperature", "-1"}}, {"--temperature"}),
       sample("top-p", {{"top-p", "1.5"}}, {"--top-p"}),
       sample("top-k", {{"top-k", "x"}}, {"--top-k"}),
       sample("device", {{"device", "tpu"}}, {"--device"}),
       sample("greedy", {{"temperature", "0"}, {"top-k", "2"}}, {"--top-k does nothing"}),
       sample("greedy", {{"temperature", "0"}, {"top-p", "0.5"}}, {"--top-p does nothing"}),
       sample("octal", {{"seed", "0x7"}}, {"--seed", "'0x7'"}),
       sample("seed", {{"seed", "18446744073709551616"}}, {"--seed"}),
       sample("unknown", {{"bogus", "1"}}, {"--bogus"})});
}

TEST_F(BadInput, PreparedText) {
  const fs::path latin = write_text(scratch / "latin.txt", "caf\xe9");
  const fs::path empty = write_text(scratch / "empty.txt", "");
  const auto prepare = [&](const std::string& name, const std::string& input, const Flags& more,
                           const std::string& part) {
    return Bad{
        name,
        command_of(LATHE_PREPARE,
                   with({{"tokenizer", "char"}, {"input", input}, {"out", scratch / "out"}}, more)),
        {part}};
  };
  expect_refused({prepare("missing", scratch / "none.txt", {}, "none.txt"),
                  prepare("no UTF-8", latin, {}, "latin.txt"),
                  prepare("empty", empty, {}, "input holds no text"),
                  prepare("tokenizer", latin, {{"tokenizer", "words"}}, "words"),
                  prepare("fraction", latin, {{"val-fraction", "2"}}, "--val-fraction"),
                  prepare("hexadecimal", latin, {{"val-fraction", "0x1p-3"}}, "--val-fraction"),
                  prepare("threads", latin, {{"threads", "1e1"}}, "'1e1' is no whole number"),
                  prepare("vocabulary", latin, {{"vocab-dir", "/"}}, "--vocab-dir does nothing"),
                  {"no key",
                   {LATHE_PREPARE, "--input", latin, "--jsonl-key", "", "--out", scratch / "out"},
                   {"--jsonl-key does nothing"}},
                  prepare("decode", latin, {{"decode", data()}}, "does nothing with --decode"),
                  prepare("brackets", "[latin]", {}, "[latin]"),
                  {"entropy",
                   command_of(LATHE_CORPUS, {{"entropy", ""}, {"bytes", "9"}}),
                   {"--bytes does nothing"}},
                  {"corpus' seed",
                   command_of(LATHE_CORPUS, {{"seed", "-1"}, {"out", scratch / "out"}}),
                   {"--seed"}},
                  prepare("over data", data().parent_path() / "stories.txt", {{"out", data()}},
                          data().string())});
}

TEST_F(BadInput, AFullDiskIsTheMachines) {
  Bad full = train("full disk", {}, {"cannot write", "File too large"});
  full.exit_code = 1;
  full.max_file_bytes = 8192;
  expect_refused({full});
  // If the disk is full at the next save, the previous checkpoint stays.
  const fs::path out = scratch / "run";
  const auto before = contents(checkpoint);
  const ProcessResult result = run(train_command(tiny(out)), {.max_file_bytes = 8192});
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_TRUE(contents(checkpoint) == before);
  expect_success(run(train_command(tiny(out))));
  EXPECT_EQ(last_checkpoint(out), "step-00000012");
}

// Sizes beyond any machine's memory are planned or refused, and never overflow.
TEST_F(BadInput, AbsurdSizesInADryRun) {
  const auto dry = [&](const Flags& more) {
    Flags flags = with({{"dry-run", ""}, {"vocab-size", "65536"}, {"n-head", "1024"}}, more);
    return run(train_command(flags));
  };
  for (const Flags& more :
       {Flags{{"n-layer", "1024"}, {"n-embd", "65536"}, {"seq-len", "1048576"}},
        Flags{{"n-layer", "96"}, {"n-embd", "16384"}, {"n-head", "128"}, {"batch-size", "1024"}},
        Flags{{"n-layer", "1"},
              {"n-embd", "1024"},
              {"seq-len", "1"},
              {"batch-size", "1073741824"}}}) {
    const ProcessResult result = dry(more);
    expect_success(result);
    expect_contains(result.out, "memory plan");
    EXPECT_EQ(result.out.find("bytes -"), std::string::npos) << result.out;
  }
  expect_refusal(dry({{"n-embd", "1024"}, {"batch-size", "1099511627776"}, {"seq-len", "1048576"}}),
                 2, "train", {"--batch-size 1099511627776", "--seq-len 1048576"});
}

}  // namespace
}  // namespace lathe::testing
