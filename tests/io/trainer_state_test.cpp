#include "src/io/trainer_state.h"

#include "src/io/file.h"
#include "src/io/json.h"
#include "tests/io/scratch.h"

namespace lathe {
namespace {

using nlohmann::json;

TrainerState sample() {
  TrainerState state;
  state.step = 1000;
  state.tokens = int64_t{1} << 45;
  state.skipped_steps = 3;
  state.seed = UINT64_MAX;
  state.loader = {"sequential", int64_t{1} << 40};
  state.layout = {8, 2, "micro-step", 16, "avx512_bf16", "bf16", "cpu"};
  state.matmul_plans = "shape\tplan\n";
  state.config = {{"lr", "0.0006"}, {"out", "läufe/\"a\""}, {"", ""}};
  return state;
}

TEST(TrainerState, SurvivesTheWayThroughAFile) {
  const Scratch scratch;
  write_file(scratch / "trainer.json", to_json(sample()));
  EXPECT_EQ(read_trainer_state(scratch / "trainer.json"), sample());
  EXPECT_EQ(parse_trainer_state(to_json(TrainerState{}), "t"), TrainerState{});
}

TEST(TrainerState, HoldsPlansOfMatrixProductsOnlyWhereThereAreSome) {
  TrainerState state = sample();
  state.matmul_plans = "";
  EXPECT_FALSE(parse_json(to_json(state)).contains("matmul_plans"));
  EXPECT_EQ(parse_trainer_state(to_json(state), "t"), state);
}

TEST(TrainerState, ReadsFilesFromWhenTheLoaderHadAnEpoch) {
  json old = parse_json(to_json(sample()));
  EXPECT_FALSE(old["loader"].contains("epoch"));
  old["loader"]["epoch"] = 0;
  EXPECT_EQ(parse_trainer_state(old.dump(), "t"), sample());
}

TEST(TrainerState, RefusesAPathThatIsNotUtf8) {
  TrainerState state = sample();
  state.config["data"] = "\xff";
  EXPECT_THROW(to_json(state), UserError);
}

void expect_refused(const std::string& text, const std::string& complaint) {
  const std::string message =
      message_of<UserError>([&] { parse_trainer_state(text, "dir/trainer.json"); });
  EXPECT_CONTAINS(message, "dir/trainer.json");
  EXPECT_CONTAINS(message, complaint);
}

TEST(TrainerState, EveryKeyMustBeThereAndOfItsType) {
  const json sound = parse_json(to_json(sample()));
  const json flat = sound.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    if (pointer.starts_with("/config")) continue;  // any keys are allowed there
    SCOPED_TRACE(pointer);
    const json::json_pointer at(pointer);
    const std::string name = pointer.substr(pointer.rfind('/') + 1);
    json missing = sound;
    missing.at(at.parent_pointer()).erase(at.back());
    if (name != "matmul_plans") expect_refused(missing.dump(), name + "\" is missing");
    json mistyped = sound;
    mistyped[at] = json::array();
    expect_refused(mistyped.dump(), name);
    mistyped[at] = value.is_string() ? json(5) : json("5");
    expect_refused(mistyped.dump(), name);
    if (value.is_string()) continue;
    for (const json& wrong : {json(-1), json(1.0), json(nullptr), json(true), json(1e30)}) {
      mistyped[at] = wrong;
      expect_refused(mistyped.dump(), name);
    }
  }
}

TEST(TrainerState, ReadsAnOlderVersion) {
  json older = parse_json(to_json(sample()));
  older["version"] = 1;
  older["layout"].erase("reduce_each");
  const TrainerState state = parse_trainer_state(older.dump(), "trainer.json");
  EXPECT_EQ(state.version, 1);
  EXPECT_EQ(state.step, sample().step);
  EXPECT_EQ(state.layout.reduce_each, "step");
}

TEST(TrainerState, RefusesWhatItDoesNotKnow) {
  const json sound = parse_json(to_json(sample()));
  for (const char* parent : {"", "/loader", "/layout"}) {
    json unknown = sound;
    unknown[json::json_pointer(parent)]["extra"] = 1;
    expect_refused(unknown.dump(), "unknown key");
  }
  json other = sound;
  for (const int version : {0, 4}) {
    other["version"] = version;
    expect_refused(other.dump(), "format version " + std::to_string(version));
  }
  other = sound;
  other["format"] = "another program's";
  expect_refused(other.dump(), "another program's");
  other = sound;
  other["step"] = UINT64_MAX;
  expect_refused(other.dump(), "step");
  other = sound;
  other["config"]["lr"] = 0.1;
  expect_refused(other.dump(), "config.lr");
  other = sound;
  other["loader"] = json::array();
  expect_refused(other.dump(), "loader");
}

TEST(TrainerState, RefusesWhatIsNotJson) {
  const std::string sound = to_json(sample());
  for (size_t n = 0; n + 1 < sound.size(); ++n) {
    EXPECT_THROW(parse_trainer_state(sound.substr(0, n), "t"), UserError) << n;
  }
  expect_refused("", "not valid JSON");
  expect_refused("[]", "expected an object");
  expect_refused(sound + "x", "not valid JSON");
  expect_refused(sound + std::string(1, '\0'), "not valid JSON");
  expect_refused("{\"a\":\"\xff\"}", "not valid JSON");
  expect_refused(R"({"step":1,"step":2})", "\"step\" occurs twice");
  expect_refused(R"({"config":{"lr":"1","lr":"2"}})", "\"lr\" occurs twice");
  expect_refused(std::string(200'000, '['), "nested");
  expect_refused(R"({"step":1e999})", "JSON");
}

}  // namespace
}  // namespace lathe
