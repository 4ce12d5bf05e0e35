// build/train: THE training loop. What it does is on this page; how, in the rooms it calls:
//
//   src/options.h      flags, presets, the learning rate
//   src/run.h          what a run holds, checkpoints
//   src/data/          batches
//   src/model/gpt2.h   forward and backward
//   src/parallel/      several ranks: data_parallel.h
//   src/report.h       console lines, metrics.jsonl
//   src/text.h         samples
//   src/trace.h        one step in detail
//   src/profile.h      some steps for a profiler
#include "kernels/device/standard_streams.h"
#include "src/io/signals.h"
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
// ranks.
double evaluate(Run& run) {
  run.parallel.gather_weights();
  const int64_t wanted = run.options().eval_batches;
  const int64_t batches =
      wanted > 0 ? std::min(wanted, run.validation->batches()) : run.validation->batches();
  int64_t targets = 0;  // of all ranks
  run.begin(0);
  for (int64_t b = 0; b < batches; ++b) {
    const Batch& batch = run.validation->batch(b);
    run.upload(batch, 0);
    run.device.replay(kEvaluation, [&run] {
      run.model.forward(run.batch(0), /*training=*/false);
      run.model.loss(run.batch(0), 1.0, run.state.device_results());
    });
    targets += run.validation->counted_targets(b);
  }
  run.parallel.add_up_loss();
  return run.state.results().loss / static_cast<double>(targets);
}

// One step: gradients of --total-batch-size tokens, in micro-steps; then AdamW. A loss or gradient
// norm that is not finite leaves the weights as they are (results.skip). Nothing here waits for the
// device. `stop`: this rank was asked to end the run; the results tell whether any was.
void train_step(Run& run, int64_t step, bool stop, StepClock& clock, StepTrace& trace,
                StepProfile& profile) {
  clock.begin();
  trace.begin(step);
  profile.begin(step);
  run.begin(step, stop);
  for (int64_t m = 0; m < run.micro_steps(); ++m) run.upload(run.loader.next(), m);
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
  if (o.eval_only) {
    const double loss = evaluate(run);
    if (run.rank() == 0) print_out(fmt::format("val_loss {:.4f}\n", loss));
    return 0;
  }
  const StopSignal stop;
  Report report(run);
  StepClock clocks[kSets] = {{*device, run.micro_steps(), 0}, {*device, run.micro_steps(), 1}};
  StepTrace trace(run, o.trace);
  StepProfile profile(run);
  const auto due = [](int64_t interval, int64_t step) {
    return interval > 0 && step % interval == 0;
  };

  // Steps that are known to be done; the device may be at work on those behind them.
  int64_t done = run.first_step, saved = done, bad_in_a_row = 0;
  bool voted = false;  // some rank was asked to stop, and all know it
  const auto collect_all_but = [&](int64_t under_way) {
    while (run.state.requested() > under_way) {
      const StepResults results = run.state.collect_results();
      report.step(done + 1, results, learning_rate(o, done), clocks[done % kSets]);
      trace.end(done, clocks[done % kSets]);
      ++done;
      voted = voted || results.stop_votes > 0;
      bad_in_a_row = results.skip ? bad_in_a_row + 1 : 0;
      run.skipped_steps += results.skip;
    }
  };
  const auto save = [&] {
    if (!o.writes() || done == saved) return;
    report.before_save();
    run.save(done);
    saved = done;
  };
  // One rank stops when it is asked to; several at the step in which they all learn of it.
  const auto stopping = [&] { return run.ranks() > 1 ? voted : stop.requested(); };
  for (int64_t step = run.first_step;; ++step) {
    const bool last = step >= o.steps;
    if (!stopping() && run.validation && (due(o.eval_interval, step) || last)) {
      collect_all_but(0);
      report.validation(step, evaluate(run));
      report.spread();
    }
    if (!stopping() && run.decoder && (due(o.sample_interval, step) || last)) {
      collect_all_but(0);
      run.parallel.gather_weights();
      report.sample(run);
    }
    if (due(o.replica_check_interval, step) && step > run.first_step) {
      collect_all_but(0);
      run.parallel.gather_weights();
      run.compare_replicas();
    }
    const bool leave = last || stopping();
    if (leave || due(o.checkpoint_interval, step)) {
      collect_all_but(0);
      save();
    }
    if (leave) break;

    train_step(run, step, stop.requested(), clocks[step % kSets], trace, profile);
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
  report.finish(stopping());
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_ranks("train", argc, argv,
                          [&](lathe::World& world) { return lathe::train(world, argc, argv); });
}
