// The training loop. This file shows what it does; these show how:
//   src/train/setup.h     turns flags, data and checkpoints into a run
//   src/train/run.h       a run: its trainer and its data
//   src/train/trainer.h   what a step needs in device memory: model, optimizer, parameters
//   src/train/progress.h  steps in flight, their results, checkpoints
#include "src/train.h"

#include <cmath>
#include <optional>

#include "kernels/device/standard_streams.h"
#include "src/train/flags.h"
#include "src/train/products.h"
#include "src/train/profile.h"
#include "src/train/progress.h"

namespace lathe {

// Computes the gradients of --total-batch-size tokens in micro-steps, then runs AdamW. If the loss
// or the gradient norm is not finite, the weights stay unchanged (results.skip). Never waits for
// the device.
void enqueue_step(Trainer& t, int slot) {
  StepClock& clock = t.clocks[static_cast<size_t>(slot)];
  const double scale = 1.0 / static_cast<double>(t.tokens_per_step());
  t.parameters->begin_step(slot);
  for (const Action& a : t.schedule) {
    const int64_t m = a.micro_step;
    if (a.kind == Action::forward) {
      clock.start(Phase::forward, m);
      t.model.forward(t.batch(m), /*training=*/true);
    } else {
      LATHE_CHECK(a.kind == Action::backward);
      clock.start(Phase::backward, m);
      const bool add = t.parameters->begin_backward(m, /*last=*/m + 1 == t.shape.micro_steps);
      t.model.loss_and_backward(t.batch(m), scale, t.state.device_results(), add);
    }
  }
  t.parameters->finish_gradients();
  clock.start(Phase::optimizer);
  t.optimizer.step(t.ops(), t.state);
  clock.start(Phase::end);
}

namespace {

// If this rank wants to stop or could not read a batch, its vote travels with the step.
void train_step(Run& run, int64_t step, Ending& ending, StepTrace& trace, StepProfile& profile) {
  Trainer& trainer = run.trainer;
  const int slot = Progress::slot_of(step);
  trainer.clocks[static_cast<size_t>(slot)].begin();
  trace.begin(step);
  profile.begin(step);
  const bool ready = ending.attempt([&run] {
    for (int64_t m = 0; m < run.micro_steps(); ++m) run.upload(run.loader.next(), m);
  });
  if (!ready) run.upload_blanks();
  run.begin(step, ending.vote(ready));
  profile.replay(trace.key(slot), [&trainer, slot] { enqueue_step(trainer, slot); });
  trainer.state.request_results();
  profile.end(step);
}

// The mean loss over the validation set, or over its first --eval-batches batches, split among the
// ranks. Returns nothing if the run is stopping.
std::optional<double> evaluate(Run& run, Ending& ending) {
  constexpr int64_t kBatchesBetweenPolls = 8;  // of all ranks
  Trainer& t = run.trainer;
  t.parameters->gather_weights();
  int64_t targets = 0;  // of all ranks
  run.begin(0);
  for (int64_t b = 0; b < run.validation_batches(); ++b) {
    if ((run.mesh().ranks() == 1 || b % kBatchesBetweenPolls == 0) && ending.ask_all()) return {};
    const bool ready = ending.attempt([&] { run.upload(run.validation->batch(b), 0); });
    if (!ready) run.upload_blanks();  // the other ranks may need this one in the forward pass
    t.device.replay(Trainer::kEvaluation, [&t] {
      t.parameters->begin_forward();
      t.model.forward(t.batch(0), /*training=*/false);
      t.model.loss(t.batch(0), 1.0, t.state.device_results());
    });
    if (ready) targets += run.validation->counted_targets(b);
  }
  if (ending.ask_all()) return {};
  t.parameters->add_up_loss();
  return t.state.results().loss / static_cast<double>(targets);
}

void evaluate_only(Run& run) {
  Ending ending(run, /*signals=*/false);
  const std::optional<double> loss = evaluate(run, ending);
  ending.rethrow();
  if (!loss) run.mesh().world().barrier();  // wait for the failed rank to end the job
  if (!std::isfinite(*loss)) {
    throw CheckError(fmt::format(
        "the validation loss is {}: the weights are too large, use an earlier checkpoint", *loss));
  }
  if (run.mesh().leads()) print_out(fmt::format("val_loss {}\n", *loss));
}

void train_all(Run& run) {
  const TrainOptions& o = run.options();
  Ending ending(run, /*signals=*/true);
  Report report(run);
  StepTrace trace(run, o.trace);
  StepProfile profile(run);
  Progress progress(run, ending, report, trace);
  const auto due = [](int64_t interval, int64_t step) { return interval && step % interval == 0; };
  for (int64_t step = run.first_step;; ++step) {
    const bool last = step >= o.steps;
    if (!ending.agreed() && run.validation && (due(o.eval_interval, step) || last)) {
      progress.collect_all();
      const std::optional<double> loss = evaluate(run, ending);
      if (loss) ending.attempt([&] { report.validation(step, *loss); });
      if (loss) report.spread();
    }
    if (!ending.agreed() && run.trainer.decoder && (due(o.sample_interval, step) || last)) {
      progress.collect_all();
      run.trainer.parameters->gather_weights();
      ending.attempt([&] { report.sample(run, ending); });
    }
    if (due(o.replica_check_interval, step) && step > run.first_step) {
      progress.collect_all();
      run.trainer.compare_replicas();
    }
    const bool leave = last || ending.agreed();
    if (leave || due(o.checkpoint_interval, step)) progress.save(leave);
    if (leave) break;
    train_step(run, step, ending, trace, profile);
    if (step == run.first_step) settle_products(run);
    progress.collect();
  }
  report.finish(ending.agreed());
  ending.rethrow();
}

}  // namespace

int train(World& world, int argc, char** argv) {
  ignore_write_signals();
  int exit_code = -1;
  const TrainOptions o = parse_train_options(argc, argv, &exit_code, world.size(), world.rank());
  if (exit_code >= 0) return exit_code;
  const auto device = make_rank_device(o, world.place());
  const auto communicator = make_communicator(world, *device, communicator_options(o));
  const Mesh mesh(*communicator);
  Setup setup(o, *device, world, mesh);
  print_setup(setup, *device, world, mesh);
  if (o.dry_run) return 0;
  Run run(std::move(setup), *device, mesh);
  o.eval_only ? evaluate_only(run) : train_all(run);
  return 0;
}

}  // namespace lathe
