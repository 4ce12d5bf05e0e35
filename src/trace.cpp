#include "src/trace.h"

#include <algorithm>
#include <iostream>

namespace lathe {

namespace {

constexpr int64_t kWarmUpSteps = 2, kTracedSteps = 2;

// One event of the format that Chrome's tracing reads: microseconds.
std::string event(std::string_view name, int rank, int row, double start_ms, double ms) {
  return fmt::format(R"({{"name":"{}","ph":"X","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f}}})"
                     ",\n",
                     name, rank, row, 1e3 * start_ms, 1e3 * ms);
}

std::string label(std::string_view what, int rank, int row, std::string_view name) {
  return fmt::format(R"({{"name":"{}","ph":"M","pid":{},"tid":{},"args":{{"name":"{}"}}}})"
                     ",\n",
                     what, rank, row, name);
}

}  // namespace

StepTrace::StepTrace(Run& run, const std::string& file)
    : run_(run),
      plain_(run.model.ops()),
      ops_(plain_, run.device, run.parallel.end_of_marks()),
      traced_step_(file.empty() ? -1 : run.first_step + kWarmUpSteps + kTracedSteps - 1) {
  // A run that is taken up again with the same flags may have less to do than that.
  if (traced_step_ >= run.options().steps) {
    if (run.rank() == 0)
      std::cerr << fmt::format("train: --trace {}: the fourth step is traced, and there are {}\n",
                               file, std::max<int64_t>(0, run.options().steps - run.first_step));
    traced_step_ = -1;
  }
  if (traced_step_ >= 0 && run.rank() == 0) file_.emplace(file);
}

void StepTrace::begin(int64_t step) {
  if (traced_step_ < 0) return;
  tracing_ = step <= traced_step_ && step > traced_step_ - kTracedSteps;
  if (tracing_ && step == traced_step_ - kTracedSteps + 1) {
    run_.model.use(ops_);
  } else if (step > traced_step_) {
    run_.model.use(plain_);
  }
  if (tracing_) ops_.clear();
}

void StepTrace::end(int64_t step, const StepClock& clock) {
  if (step != traced_step_) return;
  const std::vector<std::string> all = run_.communicator.exchange_text(events(clock));
  if (!file_) return;
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  for (const std::string& part : all) text += part;
  text.erase(text.rfind(','));
  file_->write(text + "\n]}\n");
  file_->commit();
}

// Times count from the step's beginning on each rank.
std::string StepTrace::events(const StepClock& clock) const {
  constexpr int kDeviceRow = 0, kCommunicationRow = 1;
  const int rank = run_.rank(), origin = clock.first_mark();
  std::string text = label("process_name", rank, 0, fmt::format("rank {}", rank)) +
                     label("thread_name", rank, kDeviceRow, run_.device.kind());
  const auto add = [&](std::string_view name, int row, int from, int to) {
    text += event(name, rank, row, run_.device.milliseconds_between(origin, from),
                  run_.device.milliseconds_between(from, to));
  };
  for (size_t i = 0; i < ops_.names().size(); ++i) {
    const int from = ops_.first_mark() + 2 * static_cast<int>(i);
    add(ops_.names()[i], kDeviceRow, from, from + 1);
  }
  if (run_.ranks() == 1) return text;
  text += label("thread_name", rank, kCommunicationRow, run_.communicator.kind());
  for (const Span& span : run_.parallel.spans(static_cast<int>(traced_step_ % 2))) {
    add(span.waits ? std::string("wait: ") + span.what : span.what,
        span.waits ? kDeviceRow : kCommunicationRow, span.from, span.to);
  }
  return text;
}

}  // namespace lathe
