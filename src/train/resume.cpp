#include "src/train/resume.h"

#include <charconv>
#include <cmath>

#include "src/model/weights.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

// 0.001 and 1e-3 are the same value.
bool same_value(const std::string& a, const std::string& b) {
  double x = 0, y = 0;
  const auto number = [](const std::string& text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  return a == b || (number(a, x) && number(b, y) && x == y);
}

// Calls f(name, on_resume, was, is) for each flag whose value has changed.
template <typename F>
void for_each_change(const ConfigKeys& before, const ConfigKeys& now, const F& f) {
  TrainOptions defaults;
  for (const auto& [flag, on_resume] : train_flags(defaults)) {
    const auto found = before.find(flag.name);
    const std::string was = found == before.end() ? flag.text() : found->second;
    if (!same_value(was, now.at(flag.name))) f(flag.name, on_resume, was, now.at(flag.name));
  }
}

// Whether a change of such a flag changes bits in this run. `ranks`: null for one rank.
bool matters(OnResume on_resume, bool gpu, const Communicator* ranks) {
  const bool several_ranks = ranks != nullptr && ranks->size() > 1;
  switch (on_resume) {
    case OnResume::same:
    case OnResume::other_bits:
      return true;
    case OnResume::free:
    case OnResume::compared:  // difference_to() does that
      return false;
    case OnResume::other_bits_on_gpus:
      return gpu;
    case OnResume::other_bits_on_ranks:
      return several_ranks;
    case OnResume::other_bits_on_gpu_ranks:
      return gpu && several_ranks;
    case OnResume::other_bits_over_nccl:
      return several_ranks && ranks->size() > 2 && ranks->kind() == CommKind::nccl;
  }
  return true;
}

// Whether the run was to end within its warm-up. Then no learning rate so far depended on the
// decay.
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

// Requires that the manifest lists all files that a run reads.
void require_whole(const fs::path& checkpoint, const Manifest& manifest) {
  require_files(checkpoint, manifest, {"config.json", "model.safetensors", "trainer.json"});
  optimizer_ranks(checkpoint, manifest);
}

// The newest valid checkpoint of --out. A run that writes there sets damaged ones aside. If all
// checkpoints are damaged, it throws UserError, because a fresh run would overwrite the old run's
// files.
fs::path newest_checkpoint(const TrainOptions& options) {
  if (options.out.empty() || !is_there(options.out)) return {};
  const Damaged damaged = options.writes() ? Damaged::set_aside : Damaged::leave;
  if (const auto newest = find_latest_checkpoint(options.out, damaged, require_whole))
    return *newest;
  for (const auto& entry : fs::directory_iterator(options.out)) {
    if (!options.writes() || !checkpoint_step(entry.path().filename().string())) continue;
    throw UserError(
        "--out {} holds no valid checkpoint, but {}: move it away to start over, or name another "
        "directory",
        options.out, entry.path().filename().string());
  }
  return {};
}

}  // namespace

// A run never writes beside checkpoints that it does not continue from: two runs in one directory
// would mix, and --resume auto would pick the wrong one.
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
      "--out {} holds {}, but --resume {} would not continue from it: use --resume auto, or name "
      "another --out",
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
  if (state.loader.sampling != name_of(options.sampling))
    refuse("loader.sampling", state.loader.sampling, name_of(options.sampling));
  if (state.skipped_steps > state.step)
    refuse("skipped_steps", state.skipped_steps, fmt::format("at most {}", state.step));
  if (state.seed != options.seed) refuse("seed", state.seed, options.seed);
}

void refuse_changes(const ConfigKeys& before, const ConfigKeys& now, const fs::path& checkpoint) {
  const auto refuse = [&](const std::string& name, OnResume on_resume, const std::string& was,
                          const std::string& is) {
    if (on_resume != OnResume::same) return;
    if (name == "lr-decay-steps") {
      if (now.at("schedule") == "constant" || within_warm_up(before)) return;
      throw UserError(
          "{} was made with a learning rate that decays until step {}, but now it would decay "
          "until step {}: add --lr-decay-steps {} to continue as before; --steps may be any number",
          checkpoint.string(), was, is, was);
    }
    throw UserError(
        "{} was made with --{} {}, but now it is {}: continue with the former value, or start "
        "over with --resume never and another --out",
        checkpoint.string(), name, was, is);
  };
  for_each_change(before, now, refuse);
}

bool same_products(const ConfigKeys& before, const ConfigKeys& now, const Device& device) {
  bool same = true;
  for_each_change(before, now, [&](const auto&, OnResume on_resume, const auto&, const auto&) {
    const bool products =
        on_resume == OnResume::other_bits || on_resume == OnResume::other_bits_on_gpus;
    same = same && !(products && matters(on_resume, device.kind() != DeviceKind::cpu, nullptr));
  });
  return same;
}

namespace {

// Whether the host computed AdamW (--offload states=cpu), whose last digits differ from a GPU's.
bool updated_on_host(const ConfigKeys& config) {
  const auto offload = config.find("offload");
  return offload != config.end() && offload->second.find("states=cpu") != std::string::npos;
}

}  // namespace

std::string difference_to(const TrainerState& s, const ConfigKeys& now,
                          const std::string& data_fingerprint, const Communicator& world,
                          const std::string& reduce_each, const Device& device) {
  const int64_t ranks = world.size();
  if (s.version < 2) return "was made by an older lathe, which rounded the gradient norm otherwise";
  if (s.version < 3 && ranks > 1 && now.at("stochastic-rounding") == "true")
    return "was made by an older lathe, which drew other random numbers to round weights";
  if (!s.data_fingerprint.empty() && s.data_fingerprint != data_fingerprint)
    return fmt::format("was made with other data than {} holds now", now.at("data"));
  if (s.layout.world_size != ranks) {
    return fmt::format("was made by {} rank{}, but this run has {}", s.layout.world_size,
                       s.layout.world_size == 1 ? "" : "s", ranks);
  }
  if (s.layout.reduce_each != reduce_each) {
    return fmt::format("reduced gradients each {}, but this run each {}", s.layout.reduce_each,
                       reduce_each);
  }
  if (s.layout.cpu != device.name())
    return fmt::format("was made on '{}', but this is '{}'", s.layout.cpu, device.name());
  if (device.kind() != DeviceKind::cpu && updated_on_host(s.config) != updated_on_host(now)) {
    return updated_on_host(now)
               ? "was made with AdamW on the GPU, but now the host computes it (states=cpu)"
               : "was made with AdamW on the host (states=cpu), but now the GPU computes it";
  }
  std::string changed;
  for_each_change(s.config, now,
                  [&](const std::string& name, OnResume on_resume, const std::string& was,
                      const std::string& is) {
                    if (!matters(on_resume, device.kind() != DeviceKind::cpu, &world)) return;
                    changed += fmt::format("{}--{} {}, now {}", changed.empty() ? "" : "; ", name,
                                           was, is);
                  });
  return changed.empty() ? "" : "was made with " + changed;
}

}  // namespace lathe
