#include "src/model/host_update.h"

#include <algorithm>
#include <utility>

#include "kernels/device/device.h"

namespace lathe {

namespace {

template <typename T>
Tensor bytes_of(const T* object) {
  return {const_cast<T*>(object), DType::uint8, Shape{static_cast<int64_t>(sizeof(T))}};
}

}  // namespace

HostUpdate::HostUpdate(DType weights, int64_t largest, MakeHost host, Device& device, Arena& arena)
    : dtype_(weights),
      make_host_(std::move(host)),
      down_(device.make_copy_queue()),
      calls_(device.make_copy_queue()),
      up_(device.make_copy_queue()) {
  const auto allocate = [&](MemoryCategory category, DType dtype, int64_t elements) {
    return arena.allocate(category, dtype, {elements}, MemorySpace::pinned);
  };
  for (Slot& slot : slots_) {
    slot.gradients = allocate(MemoryCategory::gradients, accumulator_of(weights), largest);
    slot.weights = allocate(MemoryCategory::weights, weights, largest);
  }
  inputs_ = allocate(MemoryCategory::batch, DType::uint8, sizeof(StepInputs));
  results_ = allocate(MemoryCategory::batch, DType::uint8, sizeof(StepResults));
}

Ticket HostUpdate::copy_down(const Tensor& to, const Tensor& from) {
  bytes_down_ += static_cast<int64_t>(from.bytes());
  return down_->copy(to, from);
}

Ticket HostUpdate::copy_up(const Tensor& to, const Tensor& from) {
  bytes_up_ += static_cast<int64_t>(from.bytes());
  return up_->copy(to, from);
}

void HostUpdate::prepare(const std::vector<AdamW>& updates) {
  updates_ = updates;
  for (size_t i = 0; i < updates_.size(); ++i) {
    AdamW& here = updates_[i];
    const Slot& slot = slots_[i % kSlots];
    const int64_t elements = here.gradients.elements();
    here.gradients = slot.gradients.rows(0, elements);
    (here.weights ? here.weights : here.masters) = slot.weights.rows(0, elements);
    here.inputs = static_cast<const StepInputs*>(inputs_.data);
    here.results = static_cast<StepResults*>(results_.data);
  }
}

void HostUpdate::run(const std::vector<AdamW>& updates, const std::function<void(size_t)>& before) {
  if (updates_.empty()) prepare(updates);
  LATHE_CHECK(updates.size() == updates_.size());
  Queue &down = down_->queue(), &calls = calls_->queue(), &up = up_->queue();
  bytes_down_ = bytes_up_ = 0;
  std::vector<Ticket> fetched, sent;
  // The slot's former chunk has been updated. Masters that are weights come down, too.
  const auto fetch_next = [&] {
    const size_t i = fetched.size();
    if (i == updates.size()) return;
    before(i);
    if (i >= kSlots) up.device_after(sent[i - kSlots]);
    down.after_device();
    if (!updates[i].weights) copy_down(updates_[i].masters, updates[i].masters);
    fetched.push_back(copy_down(updates_[i].gradients, updates[i].gradients));
  };
  down.after_device();
  copy_down(inputs_, bytes_of(updates[0].inputs));
  copy_down(results_, bytes_of(updates[0].results));
  fetch_next();
  fetch_next();
  for (size_t i = 0; i < updates.size(); ++i) {
    down.device_after(fetched[i]);
    calls.after_device();
    const Ticket updated = calls_->call([this, i] { error_.attempt([this, i] { update(i); }); });
    fetch_next();
    calls.device_after(updated);
    up.after_device();
    const AdamW &args = updates[i], &here = updates_[i];
    sent.push_back(args.weights ? copy_up(args.weights, here.weights)
                                : copy_up(args.masters, here.masters));
  }
  up.device_after(copy_up(bytes_of(updates[0].results), results_));
}

void HostUpdate::rethrow() {
  error_.rethrow();
}

// In a thread of the host. If the step is skipped, AdamW writes no weights, but they are copied all
// the same: rounds the masters again, as the last update did.
void HostUpdate::update(size_t i) {
  const auto host = make_host_();  // for this thread, which may be another each time
  const Ops& ops = host->ops(dtype_);
  const AdamW& args = updates_[i];
  ops.run(args, {});
  if (!args.results->skip || !args.weights) return;
  StepInputs rounding = *args.inputs;
  rounding.step = static_cast<uint32_t>(args.results->updates);
  const bool at_random = args.stochastic_rounding && args.results->updates > 0;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const OptimizerSegment& segment = args.segments[s];
    const int64_t elements = segment.end - segment.begin;
    ops.run(Cast{.destination = args.weights.rows(segment.begin, elements),
                 .source = args.masters.rows(segment.begin, elements),
                 .rounding = at_random ? &rounding : nullptr,
                 .first_element = segment.begin + segment.shift},
            {});
  }
}

}  // namespace lathe
