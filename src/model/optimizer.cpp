#include "src/model/optimizer.h"

#include <cstddef>
#include <utility>

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

Optimizer::Optimizer(const OptimizerConfig& config, const GPT2Parameters& weights,
                     const GPT2Parameters& gradients, const ParameterLayout& layout, Device& device,
                     Arena& arena, const Ownership& ownership)
    : config_(config),
      device_(device),
      sharded_(ownership.sharded),
      shard_(layout.shard(ownership.rank, !ownership.sharded)),
      share_(layout.shard(ownership.rank, false)),
      ranks_(layout.ranks),
      weights_(weights.flat),
      gradients_(gradients.flat) {
  if (!sharded_) {
    for (ShardPart& part : share_) part.local = part.begin;
  }
  const DType acc = gradients_.dtype, dtype = weights_.dtype;
  const Shape mine{shard_elements(shard_)};
  if (sharded_) {
    weights_ = {};
    if (dtype != acc) weights_ = arena.allocate(MemoryCategory::weights, dtype, mine);
    gradients_ = arena.allocate(MemoryCategory::gradients, acc, mine);
  }
  if (dtype == acc && !sharded_) {
    masters_ = std::exchange(weights_, Tensor{});
  } else {
    masters_ = arena.allocate(MemoryCategory::masters, acc, mine);
  }
  m_ = arena.allocate(MemoryCategory::optimizer, acc, mine);
  v_ = arena.allocate(MemoryCategory::optimizer, acc, mine);
  square_sums_ =
      arena.allocate(MemoryCategory::workspace, DType::fp64, {norm_blocks(layout.elements)});
  std::vector<OptimizerSegment> segments;
  const auto launch = [&](const std::vector<ShardPart>& parts, int64_t begin, int64_t elements) {
    const std::vector<OptimizerSegment> more = layout.segments(config.weight_decay, parts);
    segments.insert(segments.end(), more.begin(), more.end());
    launches_.push_back({begin, elements, static_cast<int64_t>(more.size())});
  };
  if (sharded_ || ranks_ == 1) {
    launch(shard_, 0, shard_elements(shard_));
  } else {
    const int64_t embeddings = layout.buckets[0].end, layers = layout.elements - embeddings;
    launch({{embeddings, 0, layers}}, embeddings, layers);
    launch({{0, 0, embeddings}}, 0, embeddings);
  }
  segments_ = arena.allocate(MemoryCategory::batch, DType::uint8,
                             {static_cast<int64_t>(segments.size() * sizeof(OptimizerSegment))});
  device.upload(segments_, segments.data());
}

void Optimizer::step(const Ops& ops, const StepState& state) const {
  sum_squares(ops);
  update(ops, state);
}

void Optimizer::sum_squares(const Ops& ops) const {
  if (ranks_ > 1) device_.zero(square_sums_);  // the others' blocks
  for (const ShardPart& part : ranks_ > 1 ? share_ : shard_) {
    ops.run(
        SquareSums{.sums = square_sums_.rows(part.begin / kNormBlock, norm_blocks(part.elements)),
                   .gradients = gradients_.rows(part.local, part.elements)},
        {});
  }
}

void Optimizer::update(const Ops& ops, const StepState& state,
                       const EmbeddingsNeeded& needed) const {
  ops.run(
      ClipScale{
          .sums = square_sums_, .grad_clip = config_.grad_clip, .results = state.device_results()},
      {});
  const auto* segments = static_cast<const OptimizerSegment*>(segments_.data);
  for (const Launch& launch : launches_) {
    const bool last = &launch == &launches_.back();
    if (last && needed) needed();
    const auto range = [&launch](const Tensor& flat) {
      return flat ? flat.rows(launch.begin, launch.elements) : flat;
    };
    ops.run(AdamW{.masters = range(masters_),
                  .m = range(m_),
                  .v = range(v_),
                  .gradients = range(gradients_),
                  .weights = range(weights_),
                  .segments = segments,
                  .segment_count = launch.segment_count,
                  .beta1 = config_.beta1,
                  .beta2 = config_.beta2,
                  .eps = config_.eps,
                  .inputs = state.inputs(0),
                  .results = state.device_results(),
                  .stochastic_rounding = config_.stochastic_rounding,
                  .last = last},
            {});
    segments += launch.segment_count;
  }
}

}  // namespace lathe
