// build/train: THE training loop. What it does is on this page; how, in the rooms it calls:
//
//   src/options.h      flags, presets, the learning rate
//   src/run.h          what a run holds, checkpoints
//   src/data/          batches
//   src/model/gpt2.h   forward and backward
//   src/parallel/      several ranks: data_parallel.h
//   src/report.h       console lines, metrics.jsonl
//   src/ending.h       when a run ends early, and that it saves
//   src/text.h         samples
//   src/trace.h        one step in detail
//   src/profile.h      some steps for a profiler
#include <cmath>
#include <optional>

#include "kernels/device/standard_streams.h"
#include "src/ending.h"
#include "src/parallel/world.h"
#include "src/profile.h"
#include "src/report.h"
#include "src/run.h"
#include "src/text.h"
#include "src/trace.h"

namespace lathe {
namespace {

// What the device may record: even steps, odd steps (two may be under way, each with its own set
// of marks), batches of an evaluation.
constexpr int kSets = DataParallel::kSets;
constexpr int kEvaluation = kSets;

// Mean loss over the validation set, or its first --eval-batches batches, shared out among the
// ranks. Nothing if the run is to end.
std::optional<double> evaluate(Run& run, Ending& ending) {
  constexpr int64_t kBatchesBetweenQuestions = 8;  // to all ranks
  run.parallel.gather_weights();
  const int64_t wanted = run.options().eval_batches;
  const int64_t batches =
      wanted > 0 ? std::min(wanted, run.validation->batches()) : run.validation->batches();
  int64_t targets = 0;  // of all ranks
  run.begin(0);
  for (int64_t b = 0; b < batches; ++b) {
    if ((run.ranks() == 1 || b % kBatchesBetweenQuestions == 0) && ending.ask_all()) return {};
    if (!ending.tried([&] { run.upload(run.validation->batch(b), 0); })) continue;
    run.device.replay(kEvaluation, [&run] {
      run.model.forward(run.batch(0), /*training=*/false);
      run.model.loss(run.batch(0), 1.0, run.state.device_results());
    });
    targets += run.validation->counted_targets(b);
  }
  if (ending.ask_all()) return {};
  run.parallel.add_up_loss();
  return run.state.results().loss / static_cast<double>(targets);
}

// One step: gradients of --total-batch-size tokens, in micro-steps; then AdamW. A loss or gradient
// norm that is not finite leaves the weights as they are (results.skip). Nothing here waits for the
// device. A rank that is to end the run, or has no batch, says so with the step.
void train_step(Run& run, int64_t step, Ending& ending, StepClock& clock, StepTrace& trace,
                StepProfile& profile) {
  clock.begin();
  trace.begin(step);
  profile.begin(step);
  const bool ready = ending.tried([&run] {
    for (int64_t m = 0; m < run.micro_steps(); ++m) run.upload(run.loader.next(), m);
  });
  if (!ready) run.upload_blanks();
  run.begin(step, ending.vote(ready));
  profile.replay(trace.key(clock.set()), [&run, &clock] {
    run.parallel.begin_step(clock.set());
    const double scale = 1.0 / static_cast<double>(run.tokens_per_step());
    for (int64_t m = 0; m < run.micro_steps(); ++m) {
      const bool first = m == 0, last = m + 1 == run.micro_steps();
      clock.start(Phase::forward, m);
      run.model.forward(run.batch(m), /*training=*/true,
                        first ? run.parallel.weights_needed() : WeightsNeeded());
      clock.start(Phase::backward, m);
      run.model.loss_and_backward(run.batch(m), scale, run.state.device_results(),
                                  /*accumulate=*/!first,
                                  last ? run.parallel.gradient_ready() : GradientReady());
    }
    run.parallel.finish_gradients();
    clock.start(Phase::optimizer);
    run.optimizer.sum_squares(run.model.ops());
    run.parallel.add_up_squares();
    run.optimizer.update(run.model.ops(), run.state, run.parallel.embeddings_needed());
    clock.start(Phase::end);
  });
  run.state.request_results();
  profile.end(step);
}

int train(World& world, int argc, char** argv) {
  ignore_write_signals();
  int exit_code = -1;
  const TrainOptions given =
      parse_train_options(argc, argv, &exit_code, world.size(), world.rank());
  if (exit_code >= 0) return exit_code;
  const auto device = make_rank_device(given, world.place());
  const auto communicator = make_communicator(world, *device, communicator_options(given));
  Setup setup(given, *device, world, *communicator);
  print_setup(setup, *device, world, *communicator);
  if (given.dry_run) return 0;

  Run run(std::move(setup), *device, *communicator);
  const TrainOptions& o = run.options();
  Ending ending(run, /*signals=*/!o.eval_only);
  if (o.eval_only) {
    const std::optional<double> loss = evaluate(run, ending);
    ending.rethrow();
    if (!loss) communicator->barrier();  // which the rank that failed does not reach
    if (!std::isfinite(*loss)) {
      throw CheckError(fmt::format(
          "the validation loss is {}: the weights are too large to compute with; use an earlier "
          "checkpoint",
          *loss));
    }
    if (run.rank() == 0) print_out(fmt::format("val_loss {}\n", *loss));
    return 0;
  }
  Report report(run);
  StepClock clocks[kSets] = {{*device, run.micro_steps(), 0}, {*device, run.micro_steps(), 1}};
  StepTrace trace(run, o.trace);
  StepProfile profile(run);
  const auto due = [](int64_t interval, int64_t step) {
    return interval > 0 && step % interval == 0;
  };

  // Steps that are known to be done; the device may be at work on those behind them.
  int64_t done = run.first_step, saved = done, bad_in_a_row = 0;
  const auto collect_all_but = [&](int64_t under_way) {
    while (run.state.requested() > under_way) {
      const StepResults results = run.state.collect_results();
      if (!ending.count(results)) continue;
      ending.tried([&] {
        report.step(done + 1, results, learning_rate(o, done), clocks[done % kSets]);
        trace.end(done, clocks[done % kSets]);
      });
      ++done;
      bad_in_a_row = results.skip ? bad_in_a_row + 1 : 0;
      run.skipped_steps += results.skip;
    }
  };
  // While steps are bad the weights are those of the last good one, whose checkpoints must stay.
  const auto save = [&] {
    if (!o.writes() || done == saved) return;
    ending.tried([&] { report.before_save(); });
    run.save(done, /*prune=*/bad_in_a_row == 0);
    saved = done;
  };
  for (int64_t step = run.first_step;; ++step) {
    const bool last = step >= o.steps;
    if (!ending.agreed() && run.validation && (due(o.eval_interval, step) || last)) {
      collect_all_but(0);
      const std::optional<double> loss = evaluate(run, ending);
      if (loss) ending.tried([&] { report.validation(step, *loss); });
      if (loss) report.spread();
    }
    if (!ending.agreed() && run.decoder && (due(o.sample_interval, step) || last)) {
      collect_all_but(0);
      run.parallel.gather_weights();
      ending.tried([&] { report.sample(run, [&] { return ending.wanted(); }); });
    }
    if (due(o.replica_check_interval, step) && step > run.first_step) {
      collect_all_but(0);
      run.parallel.gather_weights();
      run.compare_replicas();
    }
    const bool leave = last || ending.agreed();
    if (leave || due(o.checkpoint_interval, step)) {
      collect_all_but(0);
      if (leave || bad_in_a_row == 0) {
        save();
      } else {
        report.save_left_out(done, bad_in_a_row);
      }
    }
    if (leave) break;

    train_step(run, step, ending, clocks[step % kSets], trace, profile);
    if (step == run.first_step) run.settle_products();
    // The device goes on with this step while the one before it is told, unless this may be one bad
    // step too many: nothing is trained behind that.
    const bool may_be_too_many = bad_in_a_row + run.state.requested() >= o.max_skipped_steps;
    collect_all_but(device->asynchronous() && !may_be_too_many ? 1 : 0);
    if (bad_in_a_row >= o.max_skipped_steps) {
      save();
      throw CheckError(
          fmt::format("{} steps in a row had no finite loss and gradient; the weights are those "
                      "after the last good step{}",
                      bad_in_a_row, o.out.empty() ? "" : ", saved in " + o.out));
    }
  }
  report.finish(ending.agreed());
  ending.rethrow();
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_ranks("train", argc, argv,
                          [&](lathe::World& world) { return lathe::train(world, argc, argv); });
}
