#include "src/model/optimizer.h"

#include <cstddef>

namespace lathe {

StepState::StepState(Device& device, Arena& arena, int64_t micro_steps)
    : device_(device),
      inputs_(arena.allocate(MemoryCategory::batch, DType::uint8,
                             {micro_steps * static_cast<int64_t>(sizeof(StepInputs))})),
      results_(arena.allocate(MemoryCategory::batch, DType::uint8, {sizeof(StepResults)})) {}

void StepState::begin(const Ops& ops, std::span<const StepInputs> inputs) {
  LATHE_CHECK(inputs.size_bytes() == inputs_.bytes());
  device_.upload(inputs_, inputs.data());
  ops.run(BeginStep{.results = device_results(), .inputs = this->inputs(0)}, {});
}

Tensor StepState::squares() const {
  static_assert(sizeof(ExactSum) == (ExactSum::kDigits + 1) * sizeof(int64_t));
  return {&device_results()->squares, DType::int64, Shape{ExactSum::kDigits + 1}};
}

StepResults StepState::results() const {
  StepResults results;
  device_.download(&results, results_);
  return results;
}

Tensor StepState::loss_and_votes() const {
  static_assert(offsetof(StepResults, stop_votes) == offsetof(StepResults, loss) + sizeof(double));
  return {&device_results()->loss, DType::fp64, Shape{2}};
}

void StepState::request_results() {
  LATHE_CHECK(requested() < Device::kReadBacks);
  device_.read_back(static_cast<int>(requested_++ % Device::kReadBacks), results_);
}

StepResults StepState::collect_results() {
  LATHE_CHECK(requested() > 0);
  StepResults results;
  device_.collect(static_cast<int>(collected_++ % Device::kReadBacks), &results);
  return results;
}

void StepState::set_results(const StepResults& results) {
  device_.upload(results_, &results);
}

Optimizer::Optimizer(const OptimizerConfig& config, ParameterStore& parameters, Device& device,
                     Arena& arena, MemorySpace states)
    : config_(config), parameters_(parameters) {
  const std::vector<OwnedPart>& owned = parameters.owned();
  const DType acc = owned.front().gradients.dtype;
  int64_t elements = 0;
  for (const OwnedPart& part : owned) elements += part.part.elements;
  if (owned.front().weights.dtype != acc)
    masters_ = arena.allocate(MemoryCategory::masters, acc, {elements}, states);
  m_ = arena.allocate(MemoryCategory::optimizer, acc, {elements}, states);
  v_ = arena.allocate(MemoryCategory::optimizer, acc, {elements}, states);
  std::vector<OptimizerSegment> segments;
  for (const UpdateRange& range : parameters.updates()) {
    std::vector<ShardPart> parts;
    for (size_t b = range.first; b < range.end; ++b) {
      parts.push_back(owned[b].part);
      parts.back().local -= owned[range.first].part.local;
    }
    const auto more = parameters.layout().segments(config.weight_decay, parts);
    segments.insert(segments.end(), more.begin(), more.end());
    segment_counts_.push_back(static_cast<int64_t>(more.size()));
  }
  segments_ = arena.allocate(MemoryCategory::batch, DType::uint8,
                             {static_cast<int64_t>(segments.size() * sizeof(OptimizerSegment))});
  device.upload(segments_, segments.data());
}

void Optimizer::step(const Ops& ops, const StepState& state) const {
  sum_squares(ops, state);
  parameters_.add_up_squares(state.squares());
  update(ops, state);
}

Tensor Optimizer::masters(size_t part) const {
  const OwnedPart& owned = parameters_.owned()[part];
  if (weights_are_masters()) return owned.weights;
  return masters_.rows(owned.part.local, owned.part.elements);
}

Tensor Optimizer::of_range(const UpdateRange& range, const Tensor& first) const {
  const ShardPart& begin = parameters_.owned()[range.first].part;
  const ShardPart& last = parameters_.owned()[range.end - 1].part;
  return {first.data, first.dtype, {last.local + last.elements - begin.local}};
}

// A range of which this rank contributes everything takes one launch.
void Optimizer::sum_squares(const Ops& ops, const StepState& state) const {
  const std::vector<OwnedPart>& owned = parameters_.owned();
  const std::vector<ShardPart>& share = parameters_.share();
  const auto sum = [&](const Tensor& gradients) {
    ops.run(SquareSum{.gradients = gradients, .results = state.device_results()}, {});
  };
  for (const UpdateRange& range : parameters_.updates()) {
    bool all = true;
    for (size_t b = range.first; b < range.end; ++b)
      all = all && share[b].elements == owned[b].part.elements;
    if (all) {
      sum(of_range(range, owned[range.first].gradients));
      continue;
    }
    for (size_t b = range.first; b < range.end; ++b) {
      sum(owned[b].gradients.rows(share[b].begin - owned[b].part.begin, share[b].elements));
    }
  }
}

void Optimizer::update(const Ops& ops, const StepState& state) const {
  ops.run(ClipScale{.grad_clip = config_.grad_clip, .results = state.device_results()}, {});
  const auto* segments = static_cast<const OptimizerSegment*>(segments_.data);
  const std::vector<OwnedPart>& owned = parameters_.owned();
  const std::vector<UpdateRange>& updates = parameters_.updates();
  for (size_t i = 0; i < updates.size(); ++i) {
    const OwnedPart& first = owned[updates[i].first];
    const Tensor all_masters = of_range(updates[i], masters(updates[i].first));
    const auto in_range = [&](const Tensor& flat) {
      return flat.rows(first.part.local, all_masters.elements());
    };
    parameters_.await_update(i);
    ops.run(AdamW{.masters = all_masters,
                  .m = in_range(m_),
                  .v = in_range(v_),
                  .gradients = of_range(updates[i], first.gradients),
                  .weights = weights_are_masters() ? Tensor{} : of_range(updates[i], first.weights),
                  .segments = segments,
                  .segment_count = segment_counts_[i],
                  .beta1 = config_.beta1,
                  .beta2 = config_.beta2,
                  .eps = config_.eps,
                  .inputs = state.inputs(0),
                  .results = state.device_results(),
                  .stochastic_rounding = config_.stochastic_rounding,
                  .last = i + 1 == updates.size()},
            {});
    segments += segment_counts_[i];
  }
}

}  // namespace lathe
