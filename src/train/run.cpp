#include "src/train/run.h"

#include <algorithm>

#include "src/model/weights.h"
#include "src/train/products.h"
#include "src/train/save.h"

namespace lathe {

namespace {

LoaderOptions loader_options(const TrainOptions& o, const std::string& split, const Mesh& mesh,
                             const OpenShardFile& open) {
  return {.directory = o.data,
          .split = split,
          .seq_len = o.model_config.seq_len,
          .batch_size = o.batch_size,
          .micro_steps = o.micro_steps(mesh.dp().size()),
          .rank = mesh.dp().rank(),
          .ranks = mesh.dp().size(),
          .seed = o.seed,
          .sampling = o.sampling,
          .vocab_size = static_cast<int32_t>(o.model_config.vocab_size),
          .open = open};
}

}  // namespace

Run::Run(Setup setup, Device& device, const Mesh& mesh)
    : setup_(std::move(setup)),
      arena_(device, setup_.plan.total(), setup_.plan.total(MemorySpace::pinned)),
      trainer(setup_.options.model_config, setup_.options.optimizer, setup_.shape, device, mesh,
              arena_),
      loader(loader_options(setup_.options, "train", mesh, setup_.open)) {
  const TrainOptions& o = setup_.options;
  LATHE_CHECK(arena_.used() == setup_.plan, "plan and arena differ:\n{}{}", to_string(setup_.plan),
              to_string(arena_.used()));
  if (o.eval_only || (!o.benchmark && o.eval_interval > 0))
    validation.emplace(loader_options(o, "val", mesh, setup_.open));

  write_tuning_log(*this);  // still empty, but fails now if its path cannot be written
  if (!setup_.resume_from.empty()) {
    restore_checkpoint(*this);
  } else if (o.init == "random") {
    const ParameterLayout& layout = trainer.parameters->layout();
    trainer.set_masters([&](int64_t begin, const Tensor& to) {
      initialize_parameters(layout, o.seed, begin, to, device, o.init_std);
    });
  } else {
    trainer.read_masters(o.init);
  }
  trainer.round_weights(o.seed);
}

int64_t Run::validation_batches() const {
  const int64_t wanted = options().eval_batches;
  return wanted > 0 ? std::min(wanted, validation->batches()) : validation->batches();
}

void Run::begin(int64_t step, const StepVote& vote) {
  trainer.begin({.seed = options().seed,
                 .step = step,
                 .learning_rate = learning_rate(options(), step),
                 .stop_vote = vote.stop,
                 .first_loss = vote.loss});
}

void Run::upload(const Batch& from, int64_t micro_step) {
  trainer.upload(micro_step, from.inputs.data(), from.targets.data());
}

void Run::upload_blanks() {
  const auto tokens = static_cast<size_t>(setup_.shape.batch_size * setup_.shape.seq_len);
  Batch blank;
  blank.inputs.assign(tokens, 0);
  blank.targets.assign(tokens, kIgnoredTarget);
  for (int64_t m = 0; m < micro_steps(); ++m) upload(blank, m);
}

}  // namespace lathe
