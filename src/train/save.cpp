#include "src/train/save.h"

#include <exception>
#include <functional>
#include <optional>
#include <sstream>

#include "kernels/device/standard_streams.h"
#include "src/io/checkpoint.h"
#include "src/io/trainer_state.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"
#include "src/train/products.h"
#include "src/train/resume.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// Both are the same with one micro-step.
std::string reduce_each(const Trainer& trainer) {
  const bool each = trainer.shape.micro_steps > 1 &&
                    reduces_each_micro_step(trainer.shape.parallel, trainer.mesh.dp());
  return std::string(name_of(each ? ReduceEach::micro_step : ReduceEach::step));
}

TrainerState trainer_state(const Run& run, int64_t step) {
  const TrainOptions& o = run.options();
  const Device& device = run.trainer.device;
  TrainerState s;
  s.step = step;
  s.tokens = step * run.tokens_per_step();
  s.skipped_steps = run.skipped_steps;
  s.seed = o.seed;
  s.loader = {.sampling = std::string(name_of(o.sampling)), .step = step};
  s.layout = {.world_size = run.mesh().ranks(),
              .zero_stage = run.mesh().dp().size() > 1 ? run.trainer.shape.parallel.zero_stage : 0,
              .reduce_each = reduce_each(run.trainer),
              .threads = o.threads,
              .cpu = device.name(),
              .dtype = std::string(name_of(o.dtype)),
              .device = std::string(name_of(device.kind()))};
  s.matmul_plans = device.plans();
  s.data_fingerprint = run.setup().data_fingerprint;
  s.config = config_keys(o);
  return s;
}

}  // namespace

// Rank 0 makes the directory, every rank writes a file of moments into it, and rank 0 also writes
// the weights. When rank 0 has the digests of all files, it renames the directory to its final
// name. If one rank fails (a full disk, say), all fail, and rank 0 removes the partial checkpoint.
void save_checkpoint(Run& run, int64_t step, bool prune) {
  share_plans(run);  // products may have been planned since the first step
  Trainer& trainer = run.trainer;
  const TrainOptions& o = run.options();
  const ParameterLayout& layout = trainer.parameters->layout();
  std::optional<CheckpointWriter> writer;
  std::optional<ModelWriter> model;
  const auto together = [&](const std::function<void()>& part) {
    do_together(trainer.mesh.world(), part, [&] { model.reset(), writer.reset(); });
  };
  together([&] {
    if (run.mesh().leads()) writer.emplace(o.out, step);
  });
  const fs::path directory = checkpoint_partial_path(o.out, step);
  const Tokenizer* tokenizer = run.setup().tokenizer.get();
  const std::optional<int32_t> end_of_text =
      tokenizer ? tokenizer->end_of_text() : std::optional<int32_t>();
  WrittenFiles written;
  together([&] {
    written = write_optimizer(directory, *trainer.parameters, trainer.optimizer, trainer.device,
                              trainer.mesh.dp().rank());
    if (writer) model.emplace(directory, o.model_config, layout, trainer.device, end_of_text);
  });
  // All ranks gather every bucket, even if one can no longer read or write.
  std::exception_ptr failure;
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    try {
      const Tensor masters = trainer.gathered_masters(b);
      if (model && !failure) model->write(b, masters);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  std::string lines;
  together([&] {
    if (failure) std::rethrow_exception(failure);
    if (model) written.merge(model->finish());
    for (const auto& [name, digest] : written)
      lines += fmt::format("{} {} {}\n", name, digest.size, digest.xxh128);
  });
  const std::vector<std::string> all = trainer.mesh.world().exchange_text(lines);
  // No rank ends or starts the next checkpoint before this one is complete.
  together([&] {
    if (!writer) return;
    for (const std::string& text : all) {
      std::istringstream words(text);
      FileDigest digest;
      for (std::string name; words >> name >> digest.size >> digest.xxh128;)
        writer->add(name, digest);
    }
    if (tokenizer) {
      std::optional<std::string_view> end;
      if (end_of_text) end = tokenizer->token(*end_of_text);
      writer->write("tokenizer.json", tokenizer->to_json());
      writer->write("tokenizer_config.json", tokenizer_config_json(o.model_config, end));
    }
    writer->write("trainer.json", to_json(trainer_state(run, step)));
    writer->commit();
    if (prune) prune_checkpoints(o.out, o.keep, step);
  });
}

void restore_checkpoint(Run& run) {
  const fs::path& from = run.setup().resume_from;
  const TrainOptions& o = run.options();
  Trainer& trainer = run.trainer;
  Device& device = trainer.device;
  const TrainerState s = read_trainer_state(from / "trainer.json");
  const ConfigKeys now = config_keys(o);
  const Manifest manifest = read_manifest(from);
  refuse_changes(s.config, now, from);
  refuse_unfit(s, manifest, o, from);
  if (s.step > 0 && s.tokens != s.step * run.tokens_per_step()) {
    throw UserError(
        "{} was made with {} tokens a step, but now it is {} (--batch-size {} x --seq-len {} x {} "
        "rank{} x {} micro-step{}): give --total-batch-size {}, or start over with --resume never "
        "and another --out",
        from.string(), s.tokens / s.step, run.tokens_per_step(), trainer.shape.batch_size,
        trainer.shape.seq_len, run.mesh().ranks(), run.mesh().ranks() == 1 ? "" : "s",
        run.micro_steps(), run.micro_steps() == 1 ? "" : "s", s.tokens / s.step);
  }
  const std::string difference = difference_to(s, now, run.setup().data_fingerprint,
                                               run.mesh().world(), reduce_each(trainer), device);
  if (!difference.empty() && run.mesh().leads()) {
    say(fmt::format("train: {} {}: the run continues, but not bit for bit", from.string(),
                    difference));
  }
  if (same_products(s.config, now, device) && s.layout.cpu == device.name())
    device.load_plans(s.matmul_plans);
  trainer.read_masters(from);
  read_optimizer(from, optimizer_ranks(from, manifest), *trainer.parameters, trainer.optimizer,
                 device);
  run.first_step = s.step;
  run.skipped_steps = s.skipped_steps;
  trainer.state.set_results({.updates = s.step - s.skipped_steps});
  run.loader.restore({.step = s.loader.step, .micro_step = 0});
}

}  // namespace lathe
