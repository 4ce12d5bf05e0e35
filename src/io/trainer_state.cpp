#include "src/io/trainer_state.h"

#include "kernels/device/error.h"
#include "src/io/file.h"
#include "src/io/strict_json.h"

namespace lathe {

using nlohmann::json;

namespace {

constexpr std::string_view kStateFormat = "lathe trainer state";
constexpr uint64_t kMaxBytes = 16 << 20;

LoaderState parse_loader(const json& value, std::string_view file) {
  StrictObject object(value, file, "loader");
  LoaderState loader;
  loader.sampling = object.take_string("sampling");
  // Older files contain an epoch, which nothing used.
  if (value.contains("epoch")) object.take_integer("epoch", 0, INT64_MAX);
  loader.step = object.take_integer("step", 0, INT64_MAX);
  object.finish();
  return loader;
}

RunLayout parse_layout(const json& value, std::string_view file, int64_t version) {
  StrictObject object(value, file, "layout");
  RunLayout layout;
  layout.world_size = object.take_integer("world_size", 1, INT32_MAX);
  layout.zero_stage = object.take_integer("zero_stage", 0, 3);
  if (version >= 3) layout.reduce_each = object.take_string("reduce_each");
  layout.threads = object.take_integer("threads", 0, INT32_MAX);
  layout.cpu = object.take_string("cpu");
  layout.dtype = object.take_string("dtype");
  layout.device = object.take_string("device");
  object.finish();
  return layout;
}

}  // namespace

std::string to_json(const TrainerState& state) {
  nlohmann::ordered_json value = {
      {"format", kStateFormat},
      {"version", state.version},
      {"step", state.step},
      {"tokens", state.tokens},
      {"skipped_steps", state.skipped_steps},
      {"seed", state.seed},
      {"loader", {{"sampling", state.loader.sampling}, {"step", state.loader.step}}},
      {"layout",
       {{"world_size", state.layout.world_size},
        {"zero_stage", state.layout.zero_stage},
        {"reduce_each", state.layout.reduce_each},
        {"threads", state.layout.threads},
        {"cpu", state.layout.cpu},
        {"dtype", state.layout.dtype},
        {"device", state.layout.device}}},
      {"config", state.config}};
  if (!state.matmul_plans.empty()) value["matmul_plans"] = state.matmul_plans;
  if (!state.data_fingerprint.empty()) value["data_fingerprint"] = state.data_fingerprint;
  try {
    return value.dump(2) + "\n";
  } catch (const json::type_error&) {
    throw UserError(
        "a flag's value or a path is not UTF-8 and cannot be saved in trainer.json; "
        "rename the path");
  }
}

TrainerState parse_trainer_state(std::string_view text, std::string_view file) {
  const json value = parse_strict_json(text, file, 8);
  StrictObject object(value, file);
  if (object.take_string("format") != kStateFormat) {
    throw UserError("{} is not a trainer state: key \"format\" is {}, expected \"{}\"", file,
                    json_quoted(object.take_string("format")), kStateFormat);
  }
  TrainerState state;
  state.version = object.take_integer("version", 0, INT64_MAX);
  if (state.version < 1 || state.version > kTrainerStateVersion) {
    throw UserError(
        "{} has format version {}, this program reads versions 1 to {}; use the program that "
        "wrote it",
        file, state.version, kTrainerStateVersion);
  }
  state.step = object.take_integer("step", 0, INT64_MAX);
  state.tokens = object.take_integer("tokens", 0, INT64_MAX);
  state.skipped_steps = object.take_integer("skipped_steps", 0, INT64_MAX);
  state.seed = object.take_unsigned("seed");
  state.loader = parse_loader(object.take("loader"), file);
  state.layout = parse_layout(object.take("layout"), file, state.version);
  if (value.contains("matmul_plans")) state.matmul_plans = object.take_string("matmul_plans");
  if (value.contains("data_fingerprint"))
    state.data_fingerprint = object.take_string("data_fingerprint");
  StrictObject config(object.take("config"), file, "config");
  for (const auto& [key, unused] : config.items()) state.config[key] = config.take_string(key);
  object.finish();
  return state;
}

TrainerState read_trainer_state(const std::filesystem::path& path) {
  return parse_trainer_state(read_whole_file(path, kMaxBytes), path.string());
}

}  // namespace lathe
