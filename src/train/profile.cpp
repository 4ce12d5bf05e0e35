#include "src/train/profile.h"

#include "kernels/device/standard_streams.h"

namespace lathe {

namespace {

void say(const Run& run, std::string_view what) {
  if (run.mesh().leads())
    lathe::say(fmt::format("train: --profile {}: {}", run.options().profile, what));
}

}  // namespace

void RangedOps::enter_layer(int64_t layer) const {
  if (layer_ != kNoLayer) device_.pop_range();
  layer_ = layer;
  if (layer != kNoLayer)
    device_.push_range(layer < 0 ? "embeddings" : fmt::format("layer {}", layer), {});
}

void RangedOps::push(std::string_view name, const Shape& sizes, const OpCost& cost) const {
  const std::string text = times_text(sizes);
  device_.push_range(text.empty() ? std::string(name) : fmt::format("{} {}", name, text), cost);
}

bool RangedOps::before(const Call& call) const {
  push(call.name, call.sizes, call.cost);
  return true;
}

void RangedOps::part(std::string_view name, const Shape& sizes, const OpCost& cost) {
  if (in_part_) device_.pop_range();
  push(name, sizes, cost);
  in_part_ = true;
}

void RangedOps::after(const Call&) const {
  if (in_part_) device_.pop_range();
  in_part_ = false;
  device_.pop_range();
}

StepProfile::StepProfile(Run& run)
    : run_(run),
      plain_(run.trainer.ops()),
      ops_(plain_, run.trainer.device),
      first_(run.options().profile_begin),
      last_(run.options().profile_end - 1) {
  if (last_ < first_ || first_ > run.first_step) return;
  say(run,
      fmt::format("this run begins with step {}, in which the device chooses its matrix products; "
                  "nothing is profiled",
                  run.first_step));
  last_ = first_ - 1;
}

StepProfile::~StepProfile() {
  if (profiling_) stop();
}

void StepProfile::begin(int64_t step) {
  if (step != first_ || last_ < first_) return;
  profiling_ = run_.trainer.device.start_profile();
  if (!profiling_) {
    say(run_,
        fmt::format("no profiler can watch the device {}", name_of(run_.trainer.device.kind())));
    return;
  }
  run_.trainer.use(ops_);
  run_.trainer.device.observe_parts(&ops_);
}

void StepProfile::replay(int key, const std::function<void()>& body) {
  if (profiling_)
    body();
  else
    run_.trainer.device.replay(key, body);
}

void StepProfile::end(int64_t step) {
  if (profiling_ && step == last_) stop();
}

void StepProfile::stop() {
  profiling_ = false;
  run_.trainer.device.observe_parts(nullptr);
  run_.trainer.use(plain_);
  run_.trainer.device.stop_profile();
}

}  // namespace lathe
