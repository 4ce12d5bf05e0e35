#include "src/train/trace.h"

#include <algorithm>

#include "kernels/device/standard_streams.h"
#include "src/io/json.h"

namespace lathe {

namespace {

constexpr int64_t kWarmUpSteps = 2, kTracedSteps = 2;
constexpr int kDeviceRow = 0, kCommunicationRow = 1, kPhaseRow = 2;

// One event in the format of Chrome's tracing, in microseconds. `more`: further members.
std::string event(std::string_view name, int rank, int row, double start_ms, double ms,
                  std::string_view more) {
  return fmt::format(R"({{"name":"{}","ph":"X","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f}{}}})"
                     ",\n",
                     name, rank, row, 1e3 * start_ms, 1e3 * ms, more);
}

std::string label(std::string_view what, int rank, int row, std::string_view name) {
  return fmt::format(R"({{"name":"{}","ph":"M","pid":{},"tid":{},"args":{{"name":"{}"}}}})"
                     ",\n",
                     what, rank, row, name);
}

// Kind, cost and shape of an operation or a part.
std::string members_of(const TracingOps::Interval& interval) {
  std::string text =
      fmt::format(R"(,"cat":"{}","args":{{"flops":{:.0f},"bytes":{:.0f},"shape":"{}")",
                  interval.part ? "part" : "operation", interval.cost.flops, interval.cost.bytes,
                  times_text(interval.sizes));
  if (interval.layer != kNoLayer) text += fmt::format(R"(,"layer":{})", interval.layer);
  return text + "}";
}

}  // namespace

void TracingOps::clear() {
  intervals_.clear();
  marked_ = 0;
  parts_ = 0;
}

int TracingOps::mark() const {
  if (marked_ == marks_.size()) marks_.push_back(device_.take_marks(1));
  const int number = marks_[marked_++];
  device_.mark(number);
  return number;
}

bool TracingOps::before(const Call& call) const {
  operation_ = intervals_.size();
  splitting_ = parts_ < kMostParts;
  intervals_.push_back({call.name, call.sizes, call.cost, layer_, false, mark(), 0});
  return true;
}

// The first part begins with its operation. Each further part ends the part before it.
void TracingOps::part(std::string_view name, const Shape& sizes, const OpCost& cost) {
  if (!splitting_) return;
  const bool first = intervals_.size() == operation_ + 1;
  const int from = first ? intervals_[operation_].from : mark();
  if (!first) intervals_.back().to = from;
  intervals_.push_back({name, sizes, cost, layer_, true, from, 0});
  ++parts_;
}

void TracingOps::after(const Call&) const {
  const int end = mark();
  intervals_[operation_].to = end;
  intervals_.back().to = end;
  // A single part is the whole operation.
  if (intervals_.size() == operation_ + 2) intervals_.pop_back(), --parts_;
}

StepTrace::StepTrace(Run& run, const std::string& file)
    : run_(run),
      plain_(run.trainer.ops()),
      ops_(plain_, run.trainer.device),
      traced_step_(file.empty() ? -1 : run.first_step + kWarmUpSteps + kTracedSteps - 1) {
  // A run that is resumed with the same flags may have fewer than four steps left.
  if (traced_step_ >= run.options().steps) {
    if (run.mesh().leads())
      say(fmt::format("train: --trace {}: only the fourth step is traced, and there are {}", file,
                      std::max<int64_t>(0, run.options().steps - run.first_step)));
    traced_step_ = -1;
  }
  if (traced_step_ >= 0 && run.mesh().leads()) file_.emplace(file);
}

void StepTrace::begin(int64_t step) {
  if (traced_step_ < 0) return;
  tracing_ = step <= traced_step_ && step > traced_step_ - kTracedSteps;
  if (tracing_ && step == traced_step_ - kTracedSteps + 1) {
    run_.trainer.use(ops_);
    run_.trainer.device.observe_parts(&ops_);
  } else if (step == traced_step_ + 1) {
    run_.trainer.use(plain_);
    run_.trainer.device.observe_parts(nullptr);
  }
  if (tracing_) ops_.clear();
}

void StepTrace::end(int64_t step, int slot) {
  if (step != traced_step_) return;
  const std::vector<std::string> all = run_.mesh().world().exchange_text(events(slot));
  if (!file_) return;
  std::string text =
      "{\"displayTimeUnit\":\"ms\",\"otherData\":" + about() + ",\"traceEvents\":[\n";
  for (const std::string& part : all) text += part;
  text.erase(text.rfind(','));
  file_->write(text + "\n]}\n");
  file_->commit();
}

// The model, the step's sizes and rank 0's device, so that the file needs no context.
std::string StepTrace::about() const {
  const TrainOptions& o = run_.options();
  const StepShape& shape = run_.setup().shape;
  return nlohmann::ordered_json{{"device", run_.trainer.device.name()},
                                {"kind", std::string(name_of(run_.trainer.device.kind()))},
                                {"dtype", std::string(name_of(o.dtype))},
                                {"tf32", o.cuda.tf32},
                                {"model", o.model},
                                {"layers", o.model_config.n_layer},
                                {"batch_size", shape.batch_size},
                                {"seq_len", shape.seq_len},
                                {"micro_steps", shape.micro_steps},
                                {"ranks", run_.mesh().ranks()},
                                {"step", traced_step_ + 1}}
      .dump();
}

// Times count from the beginning of the step on each rank.
std::string StepTrace::events(int slot) const {
  const StepClock& clock = run_.trainer.clocks[static_cast<size_t>(slot)];
  const int rank = run_.mesh().world().rank(), origin = clock.first_mark();
  std::string text = label("process_name", rank, 0, fmt::format("rank {}", rank)) +
                     label("thread_name", rank, kDeviceRow, name_of(run_.trainer.device.kind())) +
                     label("thread_name", rank, kPhaseRow, "phases");
  const auto add = [&](std::string_view name, int row, int from, int to,
                       std::string_view more = {}) {
    text += event(name, rank, row, run_.trainer.device.milliseconds_between(origin, from),
                  run_.trainer.device.milliseconds_between(from, to), more);
  };
  for (const StepClock::Part& phase : clock.parts())
    add(name_of(phase.phase), kPhaseRow, phase.from, phase.to, R"(,"cat":"phase")");
  for (const TracingOps::Interval& interval : ops_.intervals())
    add(interval.name, kDeviceRow, interval.from, interval.to, members_of(interval));
  if (run_.mesh().ranks() == 1) return text;
  text += label("thread_name", rank, kCommunicationRow, name_of(run_.mesh().world().kind()));
  for (const Span& span : run_.trainer.parameters->spans(slot)) {
    add(span.waits ? std::string("wait: ") + span.what : span.what,
        span.waits ? kDeviceRow : kCommunicationRow, span.from, span.to,
        span.waits ? R"(,"cat":"wait")" : R"(,"cat":"communication")");
  }
  return text;
}

}  // namespace lathe
