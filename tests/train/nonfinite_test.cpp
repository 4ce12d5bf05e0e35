// Losses and gradients that are not finite never reach the weights.
#include <cmath>
#include <cstring>

#include "src/data/tokenizer.h"
#include "src/io/json.h"
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool all_finite(const fs::path& path) {
  const std::string file = read_text(path);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  const size_t data = 8 + length;
  for (size_t at = data; at < file.size(); at += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, file.data() + at, sizeof(value));
    if (!std::isfinite(value)) return false;
  }
  return true;
}

class NonFinite : public TrainTest {
 protected:
  // A text with a rare q in its training part, and a model whose logit of q is minus infinity: two
  // channels of ln_f are always -1, and only q has weights for them, 3e38 each. So the loss is
  // infinite if q is the target, and finite otherwise.
  void SetUp() override {
    const std::string stories = read_text(data().parent_path() / "stories.txt");
    std::string text;
    for (char c : stories) {
      if (c != 'q' && c != 'Q') text += c;
      if (text.size() % 90 == 45 && text.size() < stories.size() * 7 / 10) text += 'q';
    }
    prepare_text(scratch.path(), text, scratch / "text");
    expect_success(run(train_command(flags(scratch / "seed", {{"steps", "1"}}))));
    const fs::path from = scratch / "seed/step-00000001";
    fs::create_directory(init());
    for (const char* name : {"config.json", "tokenizer.json"}) {
      fs::copy_file(from / name, init() / name);
    }
    std::string file = read_text(from / "model.safetensors");
    const auto tokenizer = load_tokenizer(from);
    for (int32_t token = 0; token < tokenizer->vocab_size(); ++token) {
      poke(file, "wte.weight", static_cast<size_t>(token) * 16, {0, 0});
    }
    poke(file, "wte.weight", static_cast<size_t>(tokenizer->encode("q")[0]) * 16, {3e38f, 3e38f});
    poke(file, "ln_f.weight", 0, {0, 0});
    poke(file, "ln_f.bias", 0, {-1, -1});
    write_text(init() / "model.safetensors", file);
  }

  fs::path init() { return scratch / "init"; }
  Flags flags(const fs::path& out, const Flags& more) {
    return with(with(tiny(out), {{"data", scratch / "text"},
                                 {"bias", "true"},
                                 {"lr", "0.00001"},
                                 {"min-lr", "0.00001"}}),
                more);
  }
  Flags poisoned(const fs::path& out, const Flags& more) {
    return flags(out, with({{"init", init()}, {"steps", "40"}, {"lr-decay-steps", "40"}}, more));
  }
};

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST_F(NonFinite, StepsAreSkippedCountedAndReported) {
  for (const char* dtype : {"fp32", "bf16"}) {
    SCOPED_TRACE(dtype);
    const fs::path out = scratch / dtype, parts = scratch / (std::string(dtype) + "-parts");
    const ProcessResult result = run(train_command(poisoned(out, {{"dtype", dtype}})));
    expect_success(result);
    size_t skipped = 0;
    for (const std::string& line : repeatable_metrics(out)) {
      const json value = parse_json(line);
      if (value.contains("val_loss")) {
        EXPECT_TRUE(value["val_loss"].is_number()) << line;
      } else {
        skipped += value["loss"].is_null() || value["grad_norm"].is_null();
      }
    }
    EXPECT_GT(skipped, 2u);
    EXPECT_LT(skipped, 30u);
    EXPECT_EQ(count(result.out, "the update is skipped"), skipped) << result.out;
    const fs::path last = out / last_checkpoint(out);
    EXPECT_EQ(last.filename(), "step-00000040");
    EXPECT_EQ(parse_json(read_text(last / "trainer.json"))["skipped_steps"], skipped);
    EXPECT_TRUE(all_finite(last / "model.safetensors"));
    EXPECT_TRUE(all_finite(last / "optimizer-00000-of-00001.safetensors"));
    // A device that lags behind the host skips by itself.
    const fs::path late = scratch / (std::string(dtype) + "-late");
    expect_success(run(command_of(LATHE_TRAIN_LATE, poisoned(late, {{"dtype", dtype}}))));
    expect_same_run(out, late);
    EXPECT_EQ(parse_json(read_text(late / last.filename() / "trainer.json"))["skipped_steps"],
              skipped);
    // The count of updates, which AdamW's bias correction needs, survives a resume.
    expect_success(run(train_command(poisoned(parts, {{"dtype", dtype}, {"steps", "20"}}))));
    expect_success(run(train_command(poisoned(parts, {{"dtype", dtype}}))));
    expect_same_run(out, parts);
  }
}

TEST_F(NonFinite, ALateDeviceStopsAtTheSameStep) {
  for (const char* most : {"1", "2", "3", "4"}) {
    SCOPED_TRACE(most);
    const Flags more = {{"max-skipped-steps", most}, {"batch-size", "6"}, {"eval-interval", "7"}};
    const fs::path out = scratch / most, late = scratch / (std::string(most) + "-late");
    expect_refusal(run(train_command(poisoned(out, more))), 1, "train", {"steps in a row"});
    const ProcessResult result = run(command_of(LATHE_TRAIN_LATE, poisoned(late, more)));
    expect_refusal(result, 1, "train", {std::string(most) + " steps in a row"});
    expect_same_run(out, late);
    expect_contains(result.out,
                    std::string("at most ") + (*most == '1' ? "1" : "2") + " steps in flight");
    const auto state = [](const fs::path& run) {
      return parse_json(read_text(run / last_checkpoint(run) / "trainer.json"));
    };
    EXPECT_EQ(state(late)["step"], state(out)["step"]);
    EXPECT_EQ(state(late)["skipped_steps"], state(out)["skipped_steps"]);
  }
}

TEST_F(NonFinite, TooManyInARowStopWithTheLastGoodState) {
  const fs::path out = scratch / "out";
  const ProcessResult result = run(train_command(poisoned(out, {{"max-skipped-steps", "1"}})));
  expect_refusal(result, 1, "train", {"1 steps in a row", out.string()});
  const fs::path last = out / last_checkpoint(out);
  const int64_t step = parse_json(read_text(last / "trainer.json"))["step"].get<int64_t>();
  EXPECT_GT(step, 1);
  EXPECT_TRUE(all_finite(last / "model.safetensors"));
  // The weights are those of a run that ends one step earlier, before the bad one.
  expect_success(
      run(train_command(poisoned(scratch / "good", {{"steps", std::to_string(step - 1)}}))));
  const fs::path good = scratch / "good" / last_checkpoint(scratch / "good");
  EXPECT_TRUE(read_text(good / "model.safetensors") == read_text(last / "model.safetensors"));
  // The run resumes from them.
  expect_success(run(train_command(poisoned(out, {{"max-skipped-steps", "20"}}))));
  EXPECT_EQ(last_checkpoint(out), "step-00000040");
}

TEST_F(NonFinite, WeightsAreNamedByWhoeverReadsThem) {
  for (const auto& [value, word] :
       std::map<float, std::string>{{INFINITY, "inf"}, {-INFINITY, "-inf"}}) {
    std::string file = read_text(init() / "model.safetensors");
    poke(file, "h.0.mlp.c_fc.weight", 3, {value});
    write_text(init() / "model.safetensors", file);
    const std::vector<std::string> parts = {
        (init() / "model.safetensors").string(),
        "tensor h.0.mlp.c_fc.weight is " + word + " at element 3"};
    expect_refusal(run(train_command(poisoned(scratch / "out", {}))), 2, "train", parts);
    expect_refusal(run(train_command(poisoned(scratch / "out", {{"eval-only", ""}}))), 2, "train",
                   parts);
    for (const char* temperature : {"0", "1"}) {
      expect_refusal(run(sample_command({{"checkpoint", init()}, {"temperature", temperature}})), 2,
                     "sample", parts);
    }
  }
}

// The weights are finite, but their product is not: q's logit is plus infinity everywhere.
TEST_F(NonFinite, LogitsEndAnEvaluationAndASampleButNoTraining) {
  std::string file = read_text(init() / "model.safetensors");
  poke(file, "ln_f.bias", 0, {1, 1});
  write_text(init() / "model.safetensors", file);
  for (const char* temperature : {"0", "1"}) {
    const ProcessResult result =
        run(sample_command({{"checkpoint", init()}, {"temperature", temperature}}));
    expect_refusal(result, 1, "sample", {"the model's logits are not finite at token 1:"});
    EXPECT_EQ(result.out, "\n");  // the prompt
  }
  expect_refusal(run(train_command(poisoned(scratch / "out", {{"eval-only", ""}}))), 1, "train",
                 {"the validation loss is "});
  const ProcessResult result =
      run(train_command(poisoned(scratch / "out", {{"steps", "2"}, {"sample-interval", "1"}})));
  expect_success(result);
  expect_contains(result.out, "[the model's logits are not finite");
}

}  // namespace
}  // namespace lathe::testing
