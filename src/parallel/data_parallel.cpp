#include "src/parallel/data_parallel.h"

namespace lathe {

namespace {

// Marks of one step: two for each gather and reduction of a bucket and for each wait, and for the
// loss and the norm.
int marks_of(size_t buckets) {
  return static_cast<int>(8 * buckets + 8);
}

}  // namespace

DataParallel::DataParallel(Communicator& communicator, Device& device, GPT2& model,
                           const Optimizer& optimizer, const StepState& state, bool reduce_bf16,
                           Arena& arena)
    : communicator_(communicator),
      active_(communicator.kind() != "self"),
      device_(device),
      model_(model),
      optimizer_(optimizer),
      loss_(state.loss_and_votes()),
      sums_(optimizer.gradients()) {
  const ParameterLayout& layout = model.layout();
  LATHE_CHECK(layout.ranks == communicator.size());
  if (!active_) return;
  first_mark_ = device.take_marks(kSlots * marks_of(layout.buckets.size()));
  if (reduce_bf16) {
    staged_ = arena.allocate(MemoryCategory::gradients, DType::bf16, {layout.elements});
    sums_ = staged_;
    if (optimizer.sharded()) {
      sums_ = arena.allocate(MemoryCategory::gradients, DType::bf16,
                             {shard_elements(optimizer.shard())});
    }
  }
  if (!optimizer.sharded()) embeddings_needed_ = [this] { finish_embeddings(); };
  gathered_.resize(layout.buckets.size());
  reduced_.resize(layout.buckets.size());
  for (std::vector<Span>& spans : spans_) {
    spans.reserve(static_cast<size_t>(marks_of(layout.buckets.size()) / 2));
  }
  if (optimizer.sharded()) weights_needed_ = [this](int64_t layer) { need(layer); };
  gradient_ready_ = [this](int64_t begin, int64_t) {
    for (size_t b = 0; b < buckets().size(); ++b) {
      if (buckets()[b].begin == begin) reduce_bucket(b);
    }
  };
}

// Notes a span, whose marks it returns the first of.
int DataParallel::next_span(const char* what, bool waits) {
  const int from = first_mark_ + slot_ * marks_of(buckets().size()) + next_mark_;
  next_mark_ += 2;
  spans_[static_cast<size_t>(slot_)].push_back({what, waits, from, from + 1});
  return from;
}

// A collective between two marks of its line.
template <typename Collective>
Ticket DataParallel::spanned(const char* what, const Collective& collective) {
  const int from = next_span(what, /*waits=*/false);
  communicator_.mark(from);
  collective();
  communicator_.mark(from + 1);
  return communicator_.last();  // whoever waits for it may ask for the time
}

void DataParallel::wait_for(Ticket ticket, const char* what) {
  const int from = next_span(what, /*waits=*/true);
  device_.mark(from);
  communicator_.device_after(ticket);
  device_.mark(from + 1);
}

void DataParallel::begin_step(int slot) {
  if (!active_) return;
  slot_ = slot;
  next_mark_ = 0;
  spans_[static_cast<size_t>(slot)].clear();
  loss_reduced_ = 0;
  if (!optimizer_.sharded()) return;
  communicator_.after_device();
  for (size_t b = 0; b < buckets().size(); ++b)
    gathered_[b] = spanned(name_of(b), [&] { return gather_bucket(b); });
}

Ticket DataParallel::gather_bucket(size_t b) {
  return communicator_.all_gather(range(model_.weights().flat, buckets()[b]),
                                  share(optimizer_.weights(), b), name_of(b));
}

// Gathers come in the order of the layers, so the last that a layer needs is all it waits for.
void DataParallel::need(int64_t layer) {
  size_t b = buckets().size() - 1;
  while (buckets()[b].first_layer > layer) --b;
  if (gathered_[b] <= weights_seen_) return;
  weights_seen_ = gathered_[b];
  wait_for(gathered_[b], name_of(b));
}

// The backward pass has written the last gradient of bucket b.
void DataParallel::reduce_bucket(size_t b) {
  Tensor all = range(model_.gradients().flat, buckets()[b]);
  if (staged_) {
    const Tensor narrow = range(staged_, buckets()[b]);
    model_.ops().run(Cast{.destination = narrow, .source = all}, {});
    all = narrow;
  }
  communicator_.after_device();
  const char* name = name_of(b);
  reduced_[b] = spanned(name, [&] {
    return scattered(b) ? communicator_.reduce_scatter(share(sums_, b), all, Reduction::sum, name)
                        : communicator_.all_reduce(all, all, Reduction::sum, name);
  });
  if (loss_reduced_ != 0) return;  // the head came before the first bucket: the loss is known
  loss_reduced_ = spanned(
      "loss", [&] { return communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss"); });
}

void DataParallel::finish_gradients() {
  if (!active_) return;
  // The last bucket to be reduced is the first of the buffer, and waits for all before it; sums in
  // bf16 are made fp32 again as they come.
  if (!staged_) return wait_for(reduced_[0], name_of(0));
  for (size_t b = buckets().size(); b-- > 0;) {
    wait_for(reduced_[b], name_of(b));
    const auto arrived = [&](const Tensor& sums) {
      return scattered(b) ? share(sums, b) : range(sums, buckets()[b]);
    };
    model_.ops().run(Cast{.destination = arrived(optimizer_.gradients()), .source = arrived(sums_)},
                     {});
  }
}

void DataParallel::add_up_squares() {
  if (!active_) return;
  communicator_.after_device();
  const Tensor& squares = optimizer_.square_sums();
  const Ticket norm = spanned(
      "norm", [&] { return communicator_.all_reduce(squares, squares, Reduction::sum, "norm"); });
  if (!optimizer_.sharded()) {
    embeddings_gathered_ = spanned(name_of(0), [&] {
      return communicator_.all_gather(range(sums_, buckets()[0]), share(sums_, 0), name_of(0));
    });
  }
  wait_for(norm, "norm");
}

void DataParallel::finish_embeddings() {
  wait_for(embeddings_gathered_, name_of(0));
  if (!staged_) return;
  model_.ops().run(Cast{.destination = range(optimizer_.gradients(), buckets()[0]),
                        .source = range(sums_, buckets()[0])},
                   {});
}

void DataParallel::gather_weights() {
  if (!active_ || !optimizer_.sharded()) return;
  communicator_.after_device();
  for (size_t b = 0; b < buckets().size(); ++b) gather_bucket(b);
  communicator_.device_after(communicator_.last());
}

void DataParallel::add_up_loss() {
  if (!active_) return;
  communicator_.after_device();
  communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss");
  communicator_.device_after(communicator_.last());
}

}  // namespace lathe
