#include "src/train/resume.h"

#include <charconv>
#include <cmath>
#include <set>

#include "src/io/toml.h"
#include "src/model/weights.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

// 0.001 and 1e-3 are one value.
bool same_value(const std::string& a, const std::string& b) {
  double x = 0, y = 0;
  const auto number = [](const std::string& text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  return a == b || (number(a, x) && number(b, y) && x == y);
}

// What may change when a run is taken up again; everything else would make it another run.
const std::set<std::string>& changeable() {
  static const std::set<std::string> keys = {"steps",
                                             "eval-interval",
                                             "eval-batches",
                                             "eval-only",
                                             "sample-interval",
                                             "sample-tokens",
                                             "log-interval",
                                             "out",
                                             "checkpoint-interval",
                                             "keep",
                                             "resume",
                                             "data",
                                             "dry-run",
                                             "benchmark",
                                             "device",
                                             "threads",
                                             "init",
                                             "init-std",
                                             "model",
                                             "max-skipped-steps",
                                             "recompute",
                                             "tf32",
                                             "deterministic",
                                             "autotune",
                                             "matmul-alignment",
                                             "chunk-logits",
                                             "tuning-log",
                                             "batch-size",
                                             "total-batch-size",
                                             "zero-stage",
                                             "bucket-mb",
                                             "reduce-dtype",
                                             "comm",
                                             "comm-timeout",
                                             "rendezvous",
                                             "lr-scale",
                                             "replica-check-interval",
                                             "trace",
                                             "profile",
                                             "reader"};
  return keys;
}

// No learning rate of a run that was to end within its warm-up has depended on the decay.
bool within_warm_up(const ConfigKeys& config) {
  const auto steps = [&](const char* key) {
    const auto found = config.find(key);
    double value = HUGE_VAL;
    if (found != config.end())
      std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
    return value;
  };
  return steps("steps") <= steps("warmup-steps") && steps("lr-decay-steps") < steps("warmup-steps");
}

// That the manifest vouches for all that a run reads.
void require_whole(const fs::path& checkpoint, const Manifest& manifest) {
  require_files(checkpoint, manifest, {"config.json", "model.safetensors", "trainer.json"});
  optimizer_ranks(checkpoint, manifest);
}

// The newest checkpoint of --out. Damaged ones beside it are set aside by a run that will write
// there. If there are only damaged ones a fresh run would write over what else the directory holds,
// so that is refused.
fs::path newest_checkpoint(const TrainOptions& options) {
  if (options.out.empty() || !is_there(options.out)) return {};
  const Damaged damaged = options.writes() ? Damaged::set_aside : Damaged::leave;
  if (const auto newest = find_latest_checkpoint(options.out, damaged, require_whole))
    return *newest;
  for (const auto& entry : fs::directory_iterator(options.out)) {
    if (!options.writes() || !checkpoint_step(entry.path().filename().string())) continue;
    throw UserError(
        "--out {} holds no valid checkpoint, but {}: move it away to begin anew, or name another "
        "directory",
        options.out, entry.path().filename().string());
  }
  return {};
}

}  // namespace

ConfigKeys keys_of(const std::string& resolved) {
  ConfigKeys keys;
  for (const TomlEntry& entry : parse_flat_toml(resolved, "the resolved configuration"))
    keys[entry.key] = entry.value;
  return keys;
}

// A run never goes on beside checkpoints that are not its own past: two runs in one directory would
// mix, and --resume auto would pick the wrong one.
fs::path checkpoint_to_resume(const TrainOptions& options) {
  if (options.benchmark) return {};
  if (options.resume == "auto") return newest_checkpoint(options);
  fs::path chosen;
  if (options.resume != "never") {
    chosen = options.resume;
    if (!is_there(chosen) || !fs::is_directory(chosen)) {
      throw UserError("--resume is '{}', but must be auto, never or a checkpoint's directory",
                      options.resume);
    }
    require_whole(chosen, verify_checkpoint(chosen));
  }
  const fs::path newest = options.writes() ? newest_checkpoint(options) : fs::path{};
  if (newest.empty() || (!chosen.empty() && fs::equivalent(chosen, newest))) return chosen;
  throw UserError(
      "--out {} holds {}, which --resume {} would leave behind: continue from it with --resume "
      "auto, or name another --out",
      options.out, newest.filename().string(), options.resume);
}

void refuse_unfit(const TrainerState& state, const Manifest& manifest, const TrainOptions& options,
                  const fs::path& checkpoint) {
  const auto refuse = [&](std::string_view what, auto found, auto expected) {
    throw UserError("{} does not fit: {} is {}, expected {}; use another checkpoint",
                    (checkpoint / "trainer.json").string(), what, found, expected);
  };
  if (state.step != manifest.step) refuse("step", state.step, manifest.step);
  if (state.loader.step != state.step) refuse("loader.step", state.loader.step, state.step);
  if (state.loader.sampling != options.sampling)
    refuse("loader.sampling", state.loader.sampling, options.sampling);
  if (state.skipped_steps > state.step)
    refuse("skipped_steps", state.skipped_steps, fmt::format("at most {}", state.step));
  if (state.seed != options.seed) refuse("seed", state.seed, options.seed);
}

void refuse_changes(const ConfigKeys& before, const ConfigKeys& now, const fs::path& checkpoint) {
  for (const auto& [key, value] : now) {
    const auto found = before.find(key);
    if (changeable().contains(key) || (found != before.end() && same_value(found->second, value)))
      continue;
    if (key == "lr-decay-steps" && found != before.end()) {
      if (now.at("schedule") == "constant" || within_warm_up(before)) continue;
      throw UserError(
          "{} was made with a learning rate that falls until step {}, but now it would until step "
          "{}: add --lr-decay-steps {} to go on as before, to any number of --steps",
          checkpoint.string(), found->second, value, found->second);
    }
    throw UserError(
        "{} was made with --{} {}, but now it is {}: continue with the former value, or begin "
        "anew with --resume never and another --out",
        checkpoint.string(), key, found == before.end() ? "(absent)" : found->second, value);
  }
}

bool same_products(const ConfigKeys& before, const ConfigKeys& now, const Device& device) {
  // A checkpoint that knows no such key was made with the value that had no name yet.
  const auto same = [&](const std::string& key, const std::string& unnamed) {
    const auto found = before.find(key);
    return (found == before.end() ? unnamed : found->second) == now.at(key);
  };
  if (!same("chunk-logits", "0")) return false;
  return device.kind() == "cpu" ||
         (same("tf32", "") && same("deterministic", "") && same("matmul-alignment", "16"));
}

std::string difference_to(const TrainerState& s, const ConfigKeys& now,
                          const std::string& data_fingerprint, int64_t ranks,
                          const Device& device) {
  const auto was = [&](const char* key) {
    const auto found = s.config.find(key);
    return found == s.config.end() || same_value(found->second, now.at(key));
  };
  if (!s.data_fingerprint.empty() && s.data_fingerprint != data_fingerprint)
    return fmt::format("was made with other data than {} holds now", now.at("data"));
  if (s.layout.world_size != ranks) {
    return fmt::format("was made by {} rank{}, this is a run of {}", s.layout.world_size,
                       s.layout.world_size == 1 ? "" : "s", ranks);
  }
  if (!was("batch-size")) return "was made with another --batch-size";
  const bool same_sums = was("reduce-dtype") && was("bucket-mb") &&
                         (device.kind() == "cpu" || was("comm"));  // CPUs have MPI alone
  if (ranks > 1 && !same_sums) return "was made with other --reduce-dtype, --bucket-mb or --comm";
  if (s.layout.cpu != device.name())
    return fmt::format("was made on '{}', this is '{}'", s.layout.cpu, device.name());
  return same_products(s.config, now, device)
             ? ""
             : "was made with other --tf32, --deterministic, --matmul-alignment or --chunk-logits";
}

}  // namespace lathe
