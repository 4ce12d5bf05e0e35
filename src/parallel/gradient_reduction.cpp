#include "src/parallel/gradient_reduction.h"

#include <algorithm>

namespace lathe {

GradientReduction::GradientReduction(const ParameterLayout& layout,
                                     const std::vector<ShardPart>& shares, DType type,
                                     const ReductionOptions& options, Communicator& communicator,
                                     Device& device, StepSpans& spans, Arena& arena)
    : layout_(layout),
      shares_(shares),
      options_(options),
      communicator_(communicator),
      device_(device),
      spans_(spans),
      states_(layout.buckets.size(), State::absent),
      running_(layout.buckets.size()) {
  const auto others = static_cast<int64_t>(layout.buckets.size()) - 1;
  if (options.each_micro_step)
    holders_.assign(static_cast<size_t>(std::min(options.slots, others)), -1);
  written_ = allocate(type, arena);
  if (options.in_bf16) narrow_ = allocate(DType::bf16, arena);

  if (options.each_micro_step) {
    Placement placement;
    for (size_t b = 0; b < written_.size(); ++b)
      placement.add(layout.buckets[b].begin, written_[b]);
    views_ = ModelParameters(layout, placement);
    find_gaps();
    const std::vector<ShardPart> parts = options.of_all ? layout.whole() : shares;
    const Tensor sums = arena.allocate(MemoryCategory::gradients, type,
                                       {parts.back().local + parts.back().elements});
    for (const ShardPart& part : parts) sums_.push_back(sums.rows(part.local, part.elements));
  } else {
    views_ = ModelParameters(layout, Tensor{written_[0].data, type, {layout.elements}});
    for (size_t b = 0; b < written_.size(); ++b)
      sums_.push_back(options.of_all ? written_[b] : share_in(written_[b], b));
  }
}

// Memory for the gradients of each bucket: for all at once, or in slots.
std::vector<Tensor> GradientReduction::allocate(DType type, Arena& arena) {
  const auto memory = [&](int64_t elements) {
    return arena.allocate(MemoryCategory::gradients, type, {elements});
  };
  std::vector<Tensor> buckets;
  if (!options_.each_micro_step) {
    const Tensor all = memory(layout_.elements);
    for (const Bucket& bucket : layout_.buckets)
      buckets.push_back(all.rows(bucket.begin, bucket.elements()));
    return buckets;
  }
  int64_t largest = 0;
  for (size_t b = 1; b < layout_.buckets.size(); ++b)
    largest = std::max(largest, layout_.buckets[b].elements());
  buckets.push_back(memory(layout_.buckets[0].elements()));
  std::vector<Tensor> slots;
  for (size_t s = 0; s < holders_.size(); ++s) slots.push_back(memory(largest));
  for (size_t b = 1; b < layout_.buckets.size(); ++b)
    buckets.push_back(slots[slot_of(b)].rows(0, layout_.buckets[b].elements()));
  return buckets;
}

// In a slot they hold gradients of another bucket. They must be zero, because the norm and AdamW
// read them.
void GradientReduction::find_gaps() {
  gaps_.resize(written_.size());
  for (size_t i = 0; i < layout_.slots.size(); ++i) {
    const size_t b = layout_.bucket_of_slot[i];
    const Bucket& bucket = layout_.buckets[b];
    const ParameterSlot& slot = layout_.slots[i];
    const bool last = i + 1 == layout_.slots.size() || layout_.bucket_of_slot[i + 1] != b;
    const int64_t begin = slot.offset + slot.padded_shape.elements();
    const int64_t end = last ? bucket.end : layout_.slots[i + 1].offset;
    if (begin < end) gaps_[b].push_back(written_[b].rows(begin - bucket.begin, end - begin));
  }
}

bool GradientReduction::begin_backward(int64_t micro_step, bool last) {
  reduces_ = options_.each_micro_step || last;
  add_ = options_.each_micro_step && micro_step > 0;
  reductions_ = 0;
  return !options_.each_micro_step && micro_step > 0;
}

void GradientReduction::need(const Ops& ops, size_t slot) {
  const size_t b = layout_.bucket_of_slot[slot];
  if (options_.each_micro_step && states_[b] != State::written) enter(ops, b);
}

// Takes over the memory of bucket b from the bucket that was there.
void GradientReduction::enter(const Ops& ops, size_t b) {
  if (states_[b] == State::reduced) collect(ops, b);
  if (b > 0) {
    int64_t& holder = holders_[slot_of(b)];
    if (holder >= 0 && states_[static_cast<size_t>(holder)] != State::absent) {
      LATHE_CHECK(states_[static_cast<size_t>(holder)] == State::reduced,
                  "bucket {} is still written", holder);
      collect(ops, static_cast<size_t>(holder));
    }
    holder = static_cast<int64_t>(b);
    for (const Tensor& gap : gaps_[b]) device_.zero(gap);
  }
  states_[b] = State::written;
}

bool GradientReduction::final(const Ops& ops, size_t slot) {
  if (!reduces_ || !layout_.starts_bucket(slot)) return false;
  reduce(ops, layout_.bucket_of_slot[slot]);
  return true;
}

// The backward pass has written the last gradient of bucket b. Sums arrive where they belong, or
// among the gradients if they must still be converted or added.
void GradientReduction::reduce(const Ops& ops, size_t b) {
  Tensor all = written_[b];
  if (!narrow_.empty()) {
    ops.run(Cast{.destination = narrow_[b], .source = all}, {});
    all = narrow_[b];
  }
  const bool scatter = !options_.of_all || b == 0;
  Running& running = running_[b];
  running.sums = scatter && options_.of_all ? share_in(sums_[b], b) : sums_[b];
  running.arrive = scatter ? share_in(all, b) : all;
  if (narrow_.empty() && !add_) running.arrive = running.sums;
  running.add = add_;
  const char* name = layout_.buckets[b].name.c_str();
  communicator_.after_device();
  running.ticket = spans_.run(name, [&] {
    return scatter ? communicator_.reduce_scatter(running.arrive, all, Reduction::sum, name)
                   : communicator_.all_reduce(running.arrive, all, Reduction::sum, name);
  });
  states_[b] = State::reduced;
  ++reductions_;
}

// Waits for the sums of bucket b. Then its memory is free.
void GradientReduction::collect(const Ops& ops, size_t b) {
  const Running& running = running_[b];
  spans_.wait(running.ticket, layout_.buckets[b].name.c_str());
  if (running.arrive.data != running.sums.data) {
    ops.run(Cast{.destination = running.sums, .source = running.arrive, .accumulate = running.add},
            {});
  }
  states_[b] = State::absent;
}

// In the order in which the sums arrive.
void GradientReduction::finish(const Ops& ops) {
  LATHE_CHECK(reductions_ == written_.size(), "{} of {} buckets were final in the last micro-step",
              reductions_, written_.size());
  embeddings_in_bf16_ = !narrow_.empty() && !add_;
  for (size_t b = written_.size(); b-- > 0;) {
    if (states_[b] != State::reduced) continue;
    const bool only_waits = running_[b].arrive.data == running_[b].sums.data;
    if (b > 0 && only_waits) {  // the last collective waits for all
      states_[b] = State::absent;
    } else {
      collect(ops, b);
    }
  }
}

// In bf16 if the sums are bf16 numbers.
void GradientReduction::gather_embeddings() {
  const Tensor& all = embeddings_in_bf16_ ? narrow_[0] : sums_[0];
  const char* name = layout_.buckets[0].name.c_str();
  embeddings_gathered_ =
      spans_.run(name, [&] { communicator_.all_gather(all, share_in(all, 0), name); });
}

void GradientReduction::await_embeddings(const Ops& ops) {
  spans_.wait(embeddings_gathered_, layout_.buckets[0].name.c_str());
  if (embeddings_in_bf16_) ops.run(Cast{.destination = sums_[0], .source = narrow_[0]}, {});
}

}  // namespace lathe
