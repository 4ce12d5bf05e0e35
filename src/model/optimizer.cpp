#include "src/model/optimizer.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>

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
                     Arena& arena, const Offload& offload)
    : config_(config), parameters_(parameters), device_(device) {
  const std::vector<OwnedPart>& owned = parameters.owned();
  const DType acc = owned.front().gradients.dtype, weights = owned.front().weights.dtype;
  has_masters_ = weights != acc;
  const bool in_chunks =
      offload.states == StatesPlace::host || offload.states == StatesPlace::files;
  cut_into_chunks(in_chunks ? offload.chunk : std::numeric_limits<int64_t>::max());
  std::vector<int64_t> sizes;
  for (const Chunk& chunk : chunks_) sizes.push_back(chunk.elements);
  if (offload.states == StatesPlace::files) {
    file_ = std::make_unique<FileStates>(offload.directory, acc, has_masters_, sizes, arena);
  } else {
    const MemorySpace space =
        offload.states == StatesPlace::device ? MemorySpace::device : MemorySpace::pinned;
    int64_t elements = 0;
    for (const int64_t size : sizes) elements += size;
    const auto allocate = [&](MemoryCategory category) {
      return arena.allocate(category, acc, {elements}, space);
    };
    if (has_masters_) states_.masters = allocate(MemoryCategory::masters);
    states_.m = allocate(MemoryCategory::optimizer);
    states_.v = allocate(MemoryCategory::optimizer);
  }
  if (offload.states == StatesPlace::host) {
    on_host_ =
        std::make_unique<HostUpdate>(weights, std::ranges::max(sizes), offload.host, device, arena);
    return;  // which reads the segments where they are
  }
  segments_on_device_ =
      arena.allocate(MemoryCategory::batch, DType::uint8,
                     {static_cast<int64_t>(segments_.size() * sizeof(OptimizerSegment))});
  device.upload(segments_on_device_, segments_.data());
}

// Boundaries are multiples of `most` within a range.
void Optimizer::cut_into_chunks(int64_t most) {
  const std::vector<OwnedPart>& owned = parameters_.owned();
  for (size_t r = 0; r < parameters_.updates().size(); ++r) {
    const UpdateRange& range = parameters_.updates()[r];
    const ShardPart &first = owned[range.first].part, &last = owned[range.end - 1].part;
    const int64_t end = last.local + last.elements;
    for (int64_t begin = first.local, next = 0; begin < end; begin = next) {
      next = begin + std::min(most, end - begin);
      std::vector<ShardPart> parts;
      for (size_t b = range.first; b < range.end; ++b) {
        const ShardPart& part = owned[b].part;
        const int64_t from = std::max(begin, part.local);
        const int64_t elements = std::min(next, part.local + part.elements) - from;
        if (elements <= 0) continue;
        const int64_t before = from - part.local;
        parts.push_back({part.begin + before, from - begin, elements, part.number + before});
      }
      const auto more = parameters_.layout().segments(config_.weight_decay, parts);
      chunks_.push_back({r, begin, next - begin, segments_.size(), more.size()});
      segments_.insert(segments_.end(), more.begin(), more.end());
    }
  }
}

void Optimizer::step(const Ops& ops, const StepState& state) {
  sum_squares(ops, state);
  parameters_.add_up_squares(state.squares());
  ops.run(ClipScale{.grad_clip = config_.grad_clip, .results = state.device_results()}, {});
  const auto await = [this](size_t chunk) {
    const size_t range = chunks_[chunk].range;
    if (chunk == 0 || chunks_[chunk - 1].range != range) parameters_.await_update(range);
  };
  if (on_host_) {
    std::vector<AdamW> updates;
    for (size_t c = 0; c < chunks_.size(); ++c) updates.push_back(adamw(c, state));
    return on_host_->run(updates, await);
  }
  for (size_t c = 0; c < chunks_.size(); ++c) {
    await(c);
    if (file_) file_->need(c);
    ops.run(adamw(c, state), {});
    if (file_) file_->release(c);
  }
}

Tensor Optimizer::of_chunk(const Chunk& chunk, const Tensor& first) const {
  const UpdateRange& range = parameters_.updates()[chunk.range];
  const ShardPart& begin = parameters_.owned()[range.first].part;
  const ShardPart& last = parameters_.owned()[range.end - 1].part;
  const Tensor all{first.data, first.dtype, {last.local + last.elements - begin.local}};
  return all.rows(chunk.begin - begin.local, chunk.elements);
}

StateTensors Optimizer::states_of(size_t c) const {
  if (file_) return file_->at(c);
  const Chunk& chunk = chunks_[c];
  const auto part = [&](const Tensor& flat) { return flat.rows(chunk.begin, chunk.elements); };
  return {has_masters_ ? part(states_.masters) : Tensor{}, part(states_.m), part(states_.v)};
}

AdamW Optimizer::adamw(size_t c, const StepState& state) const {
  const Chunk& chunk = chunks_[c];
  const OwnedPart& first = parameters_.owned()[parameters_.updates()[chunk.range].first];
  const Tensor weights = of_chunk(chunk, first.weights);
  const StateTensors states = states_of(c);
  const auto* segments =
      on_host_ ? segments_.data() : static_cast<const OptimizerSegment*>(segments_on_device_.data);
  return {.masters = has_masters_ ? states.masters : weights,
          .m = states.m,
          .v = states.v,
          .gradients = of_chunk(chunk, first.gradients),
          .weights = has_masters_ ? weights : Tensor{},
          .segments = segments + chunk.first_segment,
          .segment_count = static_cast<int64_t>(chunk.segments),
          .beta1 = config_.beta1,
          .beta2 = config_.beta2,
          .eps = config_.eps,
          .inputs = state.inputs(0),
          .results = state.device_results(),
          .stochastic_rounding = config_.stochastic_rounding,
          .last = c + 1 == chunks_.size()};
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
    int64_t elements = 0;
    for (size_t b = range.first; b < range.end; ++b) {
      all = all && share[b].elements == owned[b].part.elements;
      elements += owned[b].part.elements;
    }
    if (all) {
      const Tensor& first = owned[range.first].gradients;
      sum({first.data, first.dtype, {elements}});
      continue;
    }
    for (size_t b = range.first; b < range.end; ++b) {
      sum(owned[b].gradients.rows(share[b].begin - owned[b].part.begin, share[b].elements));
    }
  }
}

void Optimizer::read(OptimizerState which, int64_t begin, int64_t count, const Body& body) {
  visit(which, begin, count, /*write=*/false, body);
}

void Optimizer::write(OptimizerState which, int64_t begin, int64_t count, const Body& body) {
  visit(which, begin, count, /*write=*/true, body);
}

void Optimizer::visit(OptimizerState which, int64_t begin, int64_t count, bool write,
                      const Body& body) {
  // Calls f(done, first, elements) for what [begin, begin + count) and [from, from + size) share.
  const auto overlap = [&](int64_t from, int64_t size, const auto& f) {
    const int64_t first = std::max(begin, from);
    const int64_t elements = std::min(begin + count, from + size) - first;
    if (elements > 0) f(first - begin, first - from, elements);
  };
  const auto of = [&](const StateTensors& states) {
    return which == OptimizerState::masters ? states.masters
           : which == OptimizerState::m     ? states.m
                                            : states.v;
  };
  if (which == OptimizerState::masters && !has_masters_) {
    for (const OwnedPart& owned : parameters_.owned()) {
      overlap(owned.part.local, owned.part.elements,
              [&](int64_t done, int64_t first, int64_t elements) {
                body(done, owned.weights.rows(first, elements));
              });
    }
    return;
  }
  if (!file_) return body(0, of(states_).rows(begin, count));
  std::vector<size_t> in_order(chunks_.size());
  std::iota(in_order.begin(), in_order.end(), size_t{0});
  std::ranges::sort(in_order, {}, [&](size_t c) { return chunks_[c].begin; });
  for (const size_t c : in_order) {
    overlap(chunks_[c].begin, chunks_[c].elements,
            [&](int64_t done, int64_t first, int64_t elements) {
              file_->open(c);
              body(done, of(file_->at(c)).rows(first, elements));
              if (write) file_->keep(c);
            });
  }
}

Tensor Optimizer::masters(size_t part) {
  const OwnedPart& owned = parameters_.owned()[part];
  if (!has_masters_) return owned.weights;
  if (!file_) return states_.masters.rows(owned.part.local, owned.part.elements);
  read(OptimizerState::masters, owned.part.local, owned.part.elements,
       [&](int64_t done, const Tensor& from) {
         device_.copy(owned.gradients.rows(done, from.elements()), from);
       });
  device_.synchronize();  // before the file's memory is used for others
  return owned.gradients;
}

void Optimizer::create_file() {
  if (file_) file_->create();
}

void Optimizer::rethrow() {
  if (file_) file_->rethrow();
  if (on_host_) on_host_->rethrow();
}

}  // namespace lathe
