// build/train: THE training loop. What it does is on this page; how, in the rooms it calls:
//
//   src/options.h      flags, presets, the learning rate
//   src/run.h          what a run holds, checkpoints
//   src/data/          batches
//   src/model/gpt2.h   forward and backward
//   src/report.h       console lines, metrics.jsonl
//   src/text.h         samples
#include <iostream>

#include "src/io/signals.h"
#include "src/report.h"
#include "src/run.h"
#include "src/text.h"

namespace lathe {
namespace {

// Mean loss over the validation set, or its first --eval-batches batches.
double evaluate(Run& run) {
  const int64_t wanted = run.options().eval_batches;
  const int64_t batches =
      wanted > 0 ? std::min(wanted, run.validation->batches()) : run.validation->batches();
  int64_t targets = 0;
  run.begin(0);
  for (int64_t b = 0; b < batches; ++b) {
    const Batch& batch = run.validation->batch(b);
    const MicroBatch on_device = run.upload(batch, 0);
    run.model.forward(on_device, /*training=*/false);
    run.model.loss(on_device, 1.0, run.state.device_results());
    targets += batch.counted_targets;
  }
  return run.state.results().loss / static_cast<double>(targets);
}

// One step: gradients of --total-batch-size tokens, in micro-steps; then AdamW. A loss or gradient
// norm that is not finite leaves the weights as they are (results.skip).
StepResults train_step(Run& run, int64_t step, StepClock& clock) {
  const double scale = 1.0 / static_cast<double>(run.tokens_per_step());
  run.begin(step);
  for (int64_t m = 0; m < run.micro_steps(); ++m) {
    const MicroBatch batch = run.upload(run.loader.next(), m);
    clock.start(Phase::forward);
    run.model.forward(batch, /*training=*/true);
    clock.start(Phase::backward);
    run.model.loss_and_backward(batch, scale, run.state.device_results(), /*accumulate=*/m > 0, {});
    clock.start(Phase::other);
  }
  clock.start(Phase::optimizer);
  run.optimizer.step(run.model.ops(), run.state, run.model.workspace());
  clock.start(Phase::other);
  return run.state.results();
}

int train(int argc, char** argv) {
  int exit_code = -1;
  const TrainOptions given = parse_train_options(argc, argv, &exit_code);
  if (exit_code >= 0) return exit_code;
  const auto device = make_cpu_device(given.threads);
  Setup setup(given, *device);
  print_setup(setup, *device);
  if (given.dry_run) return 0;

  Run run(std::move(setup), *device);
  const TrainOptions& o = run.options();
  if (o.eval_only) {
    std::cout << fmt::format("val_loss {:.4f}\n", evaluate(run));
    return 0;
  }
  const StopSignal stop;
  Report report(run);
  const auto due = [](int64_t interval, int64_t step) {
    return interval > 0 && step % interval == 0;
  };

  int64_t saved = run.first_step, bad_in_a_row = 0;
  const auto save = [&](int64_t step) {
    if (o.out.empty() || o.benchmark || step == saved) return;
    report.before_save();
    run.save(step);
    saved = step;
  };
  for (int64_t step = run.first_step;; ++step) {
    const bool last = step >= o.steps;
    const bool tell = !stop.requested();
    if (tell && run.validation && (due(o.eval_interval, step) || last)) {
      report.validation(step, evaluate(run));
    }
    if (tell && run.decoder && (due(o.sample_interval, step) || last)) report.sample(run);
    if (due(o.checkpoint_interval, step) || last || stop.requested()) save(step);
    if (last || stop.requested()) break;

    StepClock clock;
    const StepResults results = train_step(run, step, clock);
    report.step(step + 1, results, learning_rate(o, step), clock);
    bad_in_a_row = results.skip ? bad_in_a_row + 1 : 0;
    run.skipped_steps += results.skip;
    if (bad_in_a_row >= o.max_skipped_steps) {
      save(step + 1);
      throw CheckError(
          fmt::format("{} steps in a row had no finite loss and gradient; the weights are those "
                      "after the last good step{}",
                      bad_in_a_row, o.out.empty() ? "" : ", saved in " + o.out));
    }
  }
  report.finish(stop.requested());
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("train", [&] { return lathe::train(argc, argv); });
}
