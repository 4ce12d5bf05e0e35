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
                     Arena& arena)
    : config_(config), parameters_(parameters) {
  const DType acc = parameters.my_gradients().dtype;
  const Shape mine = parameters.my_gradients().shape;
  const bool are_masters = parameters.my_weights().dtype == acc;
  masters_ =
      are_masters ? parameters.my_weights() : arena.allocate(MemoryCategory::masters, acc, mine);
  m_ = arena.allocate(MemoryCategory::optimizer, acc, mine);
  v_ = arena.allocate(MemoryCategory::optimizer, acc, mine);
  std::vector<OptimizerSegment> segments;
  for (const UpdateRange& range : parameters.updates()) {
    const auto more = parameters.layout().segments(config.weight_decay, range.parts);
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

void Optimizer::sum_squares(const Ops& ops, const StepState& state) const {
  for (const ShardPart& part : parameters_.share()) {
    ops.run(SquareSum{.gradients = parameters_.my_gradients().rows(part.local, part.elements),
                      .results = state.device_results()},
            {});
  }
}

void Optimizer::update(const Ops& ops, const StepState& state) const {
  ops.run(ClipScale{.grad_clip = config_.grad_clip, .results = state.device_results()}, {});
  const auto* segments = static_cast<const OptimizerSegment*>(segments_.data);
  const std::vector<UpdateRange>& updates = parameters_.updates();
  const bool are_masters = parameters_.my_weights().data == masters_.data;
  for (size_t i = 0; i < updates.size(); ++i) {
    const auto range = [&updates, i](const Tensor& flat) {
      return flat.rows(updates[i].begin, updates[i].elements);
    };
    parameters_.await_update(i);
    ops.run(AdamW{.masters = range(masters_),
                  .m = range(m_),
                  .v = range(v_),
                  .gradients = range(parameters_.my_gradients()),
                  .weights = are_masters ? Tensor{} : range(parameters_.my_weights()),
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
