#include "src/parallel/data_parallel.h"

#include <cstddef>

namespace lathe {

namespace {

// Marks of one step: two for each gather and reduction of a bucket and for each wait, and for the
// loss and the norm.
int marks_of(size_t buckets) {
  return static_cast<int>(8 * buckets + 8);
}

std::string name_of(const Bucket& bucket, bool last) {
  if (bucket.first_layer < 0) return "embeddings";
  const std::string layers =
      bucket.first_layer == bucket.last_layer
          ? fmt::format("layer {}", bucket.first_layer)
          : fmt::format("layers {}-{}", bucket.first_layer, bucket.last_layer);
  return last ? layers + ", ln_f" : layers;
}

}  // namespace

DataParallel::DataParallel(Communicator& communicator, Device& device, GPT2& model,
                           const Optimizer& optimizer, const StepState& state, bool reduce_bf16,
                           Arena& arena, int first_mark)
    : communicator_(communicator),
      active_(communicator.kind() != "self"),
      device_(device),
      model_(model),
      optimizer_(optimizer),
      loss_{reinterpret_cast<char*>(state.device_results()) + offsetof(StepResults, loss),
            DType::fp64, Shape{2}},
      first_mark_(first_mark) {
  // What is summed over the ranks lies side by side.
  static_assert(offsetof(StepResults, stop_votes) == offsetof(StepResults, loss) + sizeof(double));
  const ParameterLayout& layout = model.layout();
  LATHE_CHECK(layout.ranks == communicator.size());
  if (!active_) return;
  if (reduce_bf16) {
    staged_ = arena.allocate(MemoryCategory::gradients, DType::bf16, {layout.elements});
    if (optimizer.sharded()) {
      staged_mine_ = arena.allocate(MemoryCategory::gradients, DType::bf16,
                                    {shard_elements(optimizer.shard())});
    }
  }
  for (const Bucket& bucket : layout.buckets) {
    names_.push_back(name_of(bucket, &bucket == &layout.buckets.back()));
  }
  gathered_.resize(layout.buckets.size());
  reduced_.resize(layout.buckets.size());
  for (std::vector<Span>& spans : spans_) {
    spans.reserve(static_cast<size_t>(marks_of(layout.buckets.size()) / 2));
  }
  if (optimizer.sharded()) weights_needed_ = [this](int64_t layer) { need(layer); };
  gradient_ready_ = [this](const Tensor& ready) {
    const Tensor& flat = model_.gradients().flat;
    const int64_t begin = (static_cast<char*>(ready.data) - static_cast<char*>(flat.data)) /
                          static_cast<int64_t>(size_of(flat.dtype));
    const std::vector<Bucket>& buckets = model_.layout().buckets;
    for (size_t b = 0; b < buckets.size(); ++b) {
      if (buckets[b].begin == begin) reduce_bucket(b);
    }
  };
}

int DataParallel::end_of_marks() const {
  return first_mark_ + kSets * marks_of(names_.size());
}

// A collective between two marks of its line.
template <typename Collective>
Ticket DataParallel::spanned(const char* what, const Collective& collective) {
  const int from = first_mark_ + set_ * marks_of(names_.size()) + next_mark_;
  next_mark_ += 2;
  spans_[static_cast<size_t>(set_)].push_back({what, false, from, from + 1});
  communicator_.mark(from);
  collective();
  communicator_.mark(from + 1);
  return communicator_.last();  // whoever waits for it may ask for the time
}

void DataParallel::wait_for(Ticket ticket, const char* what) {
  const int from = first_mark_ + set_ * marks_of(names_.size()) + next_mark_;
  next_mark_ += 2;
  spans_[static_cast<size_t>(set_)].push_back({what, true, from, from + 1});
  device_.mark(from);
  communicator_.device_after(ticket);
  device_.mark(from + 1);
}

void DataParallel::begin_step(int set) {
  if (!active_) return;
  set_ = set;
  next_mark_ = 0;
  spans_[static_cast<size_t>(set)].clear();
  loss_reduced_ = 0;
  if (!optimizer_.sharded()) return;
  communicator_.after_device();
  for (size_t b = 0; b < names_.size(); ++b)
    gathered_[b] = spanned(names_[b].c_str(), [&] { return gather_bucket(b); });
}

Ticket DataParallel::gather_bucket(size_t b) {
  return communicator_.all_gather(range(model_.weights().flat, model_.layout().buckets[b]),
                                  optimizer_.weights().rows(share(b).local, share(b).elements),
                                  names_[b].c_str());
}

void DataParallel::need(int64_t layer) {
  const std::vector<Bucket>& buckets = model_.layout().buckets;
  for (size_t b = 0; b < buckets.size(); ++b) {
    if (buckets[b].first_layer == layer) wait_for(gathered_[b], names_[b].c_str());
  }
}

// The backward pass has written the last gradient of bucket b.
void DataParallel::reduce_bucket(size_t b) {
  const Bucket& bucket = model_.layout().buckets[b];
  Tensor all = range(model_.gradients().flat, bucket);
  if (staged_) {
    const Tensor narrow = range(staged_, bucket);
    model_.ops().cast({.destination = narrow, .source = all}, {});
    all = narrow;
  }
  communicator_.after_device();
  const char* name = names_[b].c_str();
  reduced_[b] = spanned(name, [&] {
    if (!optimizer_.sharded()) return communicator_.all_reduce(all, all, Reduction::sum, name);
    const Tensor& mine = staged_ ? staged_mine_ : optimizer_.gradients();
    return communicator_.reduce_scatter(mine.rows(share(b).local, share(b).elements), all,
                                        Reduction::sum, name);
  });
  if (loss_reduced_ != 0) return;  // the head came before the first bucket: the loss is known
  loss_reduced_ = spanned(
      "loss", [&] { return communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss"); });
}

void DataParallel::finish_gradients() {
  if (!active_) return;
  // The last bucket to be reduced is the first of the buffer, and waits for all before it; sums in
  // bf16 are made fp32 again as they come.
  if (!staged_) return wait_for(reduced_[0], names_[0].c_str());
  for (size_t b = names_.size(); b-- > 0;) take_back(b);
}

void DataParallel::take_back(size_t b) {
  wait_for(reduced_[b], names_[b].c_str());
  const Bucket& bucket = model_.layout().buckets[b];
  Cast cast{.destination = range(model_.gradients().flat, bucket),
            .source = range(staged_, bucket)};
  if (optimizer_.sharded()) {
    cast.destination = optimizer_.gradients().rows(share(b).local, share(b).elements);
    cast.source = staged_mine_.rows(share(b).local, share(b).elements);
  }
  model_.ops().cast(cast, {});
}

void DataParallel::add_up_squares() {
  if (!active_ || !optimizer_.sharded()) return;
  communicator_.after_device();
  const Tensor& sums = optimizer_.square_sums();
  wait_for(
      spanned("norm", [&] { return communicator_.all_reduce(sums, sums, Reduction::sum, "norm"); }),
      "norm");
}

void DataParallel::gather_weights() {
  if (!active_ || !optimizer_.sharded()) return;
  communicator_.after_device();
  for (size_t b = 0; b < names_.size(); ++b) gather_bucket(b);
  communicator_.device_after(communicator_.last());
}

void DataParallel::add_up_loss() {
  if (!active_) return;
  communicator_.after_device();
  communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss");
  communicator_.device_after(communicator_.last());
}

}  // namespace lathe
