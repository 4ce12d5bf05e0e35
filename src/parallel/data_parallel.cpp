#include "src/parallel/data_parallel.h"

#include <array>
#include <vector>

namespace lathe {

namespace {

// Marks per step: two for each gather, each reduction and each wait of a bucket, and two for those
// of the loss and the norm.
int marks_of(size_t buckets) {
  return static_cast<int>(8 * buckets + 8);
}

// What stages 0 and 1 share: each bucket is reduced as soon as it is final, in a queue beside the
// device's.
class DataParallelStore : public ParameterStore {
 public:
  void gradients_final(size_t slot) override;
  void add_up_squares(const Tensor& squares) override;
  void begin_step(int slot) override;
  bool begin_backward(int64_t micro_step, bool last) override {
    last_micro_step_ = last;
    return micro_step > 0;
  }
  void finish_gradients() override;
  std::span<const Span> spans(int slot) const override {
    return spans_.at(static_cast<size_t>(slot));
  }
  void add_up_loss() override;

 protected:
  DataParallelStore(const ModelConfig& config, const DataParallelOptions& options,
                    Communicator& communicator, Device& device, const Ops& ops, const Tensor& loss,
                    Arena& arena);
  // Allocates the memory of reduced gradients. Call it once the owned parts are known.
  void allocate_sums(Arena& arena);

  // Whether bucket b is reduce-scattered, so that this rank gets only its share.
  virtual bool scattered(size_t b) const = 0;
  // Called behind the norm's all-reduce, to enqueue collectives that the norm must not wait for.
  virtual void after_norm() {}

  void wait_for(Ticket ticket, const char* what);
  // Enqueues a collective between two marks of its queue.
  template <typename Collective>
  Ticket spanned(const char* what, const Collective& collective) {
    const int from = next_span(what, /*waits=*/false);
    communicator_.mark(from);
    collective();
    communicator_.mark(from + 1);
    return communicator_.last();  // the second mark: its time is known after waiting for it
  }
  Tensor range(const Tensor& flat, size_t b) const {
    return flat.rows(buckets()[b].begin, buckets()[b].elements());
  }
  // This rank's share of a bucket, in tensors like my_gradients().
  Tensor share_of(const Tensor& mine, size_t b) const {
    return mine.rows(bucket_shares_[b].local, bucket_shares_[b].elements);
  }
  const std::vector<Bucket>& buckets() const { return layout_.buckets; }
  const char* name_of(size_t b) const { return buckets()[b].name.c_str(); }

  Communicator& communicator_;
  Device& device_;
  std::vector<ShardPart> bucket_shares_;  // this rank's, of each bucket
  Tensor sums_;  // the reduced gradients: my_gradients(), or the same in bf16

 private:
  void reduce_bucket(size_t b);
  int next_span(const char* what, bool waits);

  bool reduce_bf16_;
  Tensor loss_;
  Tensor staged_;                // bf16: gradients to be reduced
  std::vector<Ticket> reduced_;  // of the buckets
  size_t reductions_ = 0;        // of the step
  Ticket loss_reduced_ = 0;
  bool last_micro_step_ = false;
  int first_mark_, slot_ = 0, next_mark_ = 0;
  std::array<std::vector<Span>, kStepSlots> spans_;
};

// Stage 0: every rank updates everything.
class ReplicatedStore final : public DataParallelStore {
 public:
  ReplicatedStore(const ModelConfig& config, const DataParallelOptions& options,
                  Communicator& communicator, Device& device, const Ops& ops, const Tensor& loss,
                  Arena& arena);
  void await_update(size_t i) override;

 private:
  bool scattered(size_t b) const override { return b == 0; }
  void after_norm() override;

  Ticket embeddings_gathered_ = 0;
};

// Stage 1: each rank updates its share of every bucket.
class Zero1Store final : public DataParallelStore {
 public:
  Zero1Store(const ModelConfig& config, const DataParallelOptions& options,
             Communicator& communicator, Device& device, const Ops& ops, const Tensor& loss,
             Arena& arena);
  void begin_step(int slot) override;
  void need(Pass pass, int64_t unit) override;
  void gather_weights() override;
  Tensor whole(const Tensor&) override { return gradients_.flat; }
  Tensor gather(const Tensor& mine, const char* what) override;
  void keep_mine(const Tensor& mine) override;

 private:
  bool scattered(size_t) const override { return true; }
  Ticket gather_bucket(size_t b);

  std::vector<Ticket> gathered_;  // of the buckets
  Ticket weights_seen_ = 0;       // the newest gather that the device has waited for
};

DataParallelStore::DataParallelStore(const ModelConfig& config, const DataParallelOptions& options,
                                     Communicator& communicator, Device& device, const Ops& ops,
                                     const Tensor& loss, Arena& arena)
    : ParameterStore(config, {communicator.size(), options.bucket_elements}, ops, arena),
      communicator_(communicator),
      device_(device),
      bucket_shares_(layout_.shard(communicator.rank(), /*all=*/false)),
      reduce_bf16_(options.reduce_bf16 && communicator.size() > 1),
      loss_(loss),
      reduced_(layout_.buckets.size()),
      first_mark_(device.take_marks(kStepSlots * marks_of(layout_.buckets.size()))) {
  for (std::vector<Span>& spans : spans_)
    spans.reserve(static_cast<size_t>(marks_of(layout_.buckets.size()) / 2));
}

void DataParallelStore::allocate_sums(Arena& arena) {
  sums_ = my_gradients_;
  if (!reduce_bf16_) return;
  staged_ = arena.allocate(MemoryCategory::gradients, DType::bf16, {layout_.elements});
  const bool all = shard_elements(owned_) == layout_.elements;
  sums_ =
      all ? staged_ : arena.allocate(MemoryCategory::gradients, DType::bf16, my_gradients_.shape);
}

// Adds a span and returns the first of its two marks.
int DataParallelStore::next_span(const char* what, bool waits) {
  const int from = first_mark_ + slot_ * marks_of(buckets().size()) + next_mark_;
  next_mark_ += 2;
  spans_[static_cast<size_t>(slot_)].push_back({what, waits, from, from + 1});
  return from;
}

void DataParallelStore::wait_for(Ticket ticket, const char* what) {
  const int from = next_span(what, /*waits=*/true);
  device_.mark(from);
  communicator_.device_after(ticket);
  device_.mark(from + 1);
}

void DataParallelStore::begin_step(int slot) {
  slot_ = slot;
  next_mark_ = 0;
  spans_[static_cast<size_t>(slot)].clear();
  loss_reduced_ = 0;
  reductions_ = 0;
}

void DataParallelStore::gradients_final(size_t slot) {
  if (!last_micro_step_) return;
  const int bucket = layout_.bucket_of_slot[slot];
  if (bucket >= 0) reduce_bucket(static_cast<size_t>(bucket));
}

// The backward pass has written the last gradient of bucket b.
void DataParallelStore::reduce_bucket(size_t b) {
  Tensor all = range(gradients_.flat, b);
  if (staged_) {
    const Tensor narrow = range(staged_, b);
    ops().run(Cast{.destination = narrow, .source = all}, {});
    all = narrow;
  }
  communicator_.after_device();
  const char* name = name_of(b);
  reduced_[b] = spanned(name, [&] {
    return scattered(b)
               ? communicator_.reduce_scatter(share_of(sums_, b), all, Reduction::sum, name)
               : communicator_.all_reduce(all, all, Reduction::sum, name);
  });
  ++reductions_;
  if (loss_reduced_ != 0) return;  // once a step: the loss is final before the first bucket
  loss_reduced_ = spanned(
      "loss", [&] { return communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss"); });
}

void DataParallelStore::finish_gradients() {
  LATHE_CHECK(reductions_ == buckets().size(), "{} of {} buckets were final in the last micro-step",
              reductions_, buckets().size());
  last_micro_step_ = false;
  // The first bucket of the buffer is reduced last, so waiting for it waits for all. Sums in bf16
  // are converted to fp32 as they arrive.
  if (!staged_) return wait_for(reduced_[0], name_of(0));
  for (size_t b = buckets().size(); b-- > 0;) {
    wait_for(reduced_[b], name_of(b));
    const auto arrived = [&](const Tensor& sums) {
      return scattered(b) ? share_of(sums, b) : range(sums, b);
    };
    ops().run(Cast{.destination = arrived(my_gradients_), .source = arrived(sums_)}, {});
  }
}

void DataParallelStore::add_up_squares(const Tensor& squares) {
  communicator_.after_device();
  const Ticket norm = spanned(
      "norm", [&] { return communicator_.all_reduce(squares, squares, Reduction::sum, "norm"); });
  after_norm();
  wait_for(norm, "norm");
}

void DataParallelStore::add_up_loss() {
  communicator_.after_device();
  communicator_.all_reduce(loss_, loss_, Reduction::sum, "loss");
  communicator_.device_after(communicator_.last());
}

// ------------------------------------------------------------------------------------ stage 0

ReplicatedStore::ReplicatedStore(const ModelConfig& config, const DataParallelOptions& options,
                                 Communicator& communicator, Device& device, const Ops& ops,
                                 const Tensor& loss, Arena& arena)
    : DataParallelStore(config, options, communicator, device, ops, loss, arena) {
  own_all();
  for (ShardPart& part : bucket_shares_) part.local = part.begin;
  if (layout_.ranks > 1) {
    share_ = bucket_shares_;
    const int64_t embeddings = layout_.buckets[0].end, rest = layout_.elements - embeddings;
    updates_ = {{embeddings, rest, {{embeddings, 0, rest}}}, {0, embeddings, {{0, 0, embeddings}}}};
  }
  allocate_sums(arena);
}

void ReplicatedStore::after_norm() {
  embeddings_gathered_ = spanned(name_of(0), [&] {
    return communicator_.all_gather(range(sums_, 0), share_of(sums_, 0), name_of(0));
  });
}

// The embeddings come last.
void ReplicatedStore::await_update(size_t i) {
  if (i + 1 < updates_.size()) return;
  wait_for(embeddings_gathered_, name_of(0));
  if (sums_.data == my_gradients_.data) return;
  ops().run(Cast{.destination = range(my_gradients_, 0), .source = range(sums_, 0)}, {});
}

// ------------------------------------------------------------------------------------ stage 1

Zero1Store::Zero1Store(const ModelConfig& config, const DataParallelOptions& options,
                       Communicator& communicator, Device& device, const Ops& ops,
                       const Tensor& loss, Arena& arena)
    : DataParallelStore(config, options, communicator, device, ops, loss, arena),
      gathered_(layout_.buckets.size()) {
  owned_ = share_ = bucket_shares_;
  const DType dtype = weights_.flat.dtype, acc = gradients_.flat.dtype;
  const Shape mine{shard_elements(owned_)};
  my_weights_ =
      arena.allocate(dtype == acc ? MemoryCategory::masters : MemoryCategory::weights, dtype, mine);
  my_gradients_ = arena.allocate(MemoryCategory::gradients, acc, mine);
  updates_ = {{0, shard_elements(owned_), owned_}};
  allocate_sums(arena);
}

void Zero1Store::begin_step(int slot) {
  DataParallelStore::begin_step(slot);
  communicator_.after_device();
  for (size_t b = 0; b < buckets().size(); ++b)
    gathered_[b] = spanned(name_of(b), [&] { return gather_bucket(b); });
}

Ticket Zero1Store::gather_bucket(size_t b) {
  return communicator_.all_gather(range(weights_.flat, b), share_of(my_weights_, b), name_of(b));
}

// Gathers are enqueued in the order of the units, so a unit waits only for the last that it needs.
void Zero1Store::need(Pass, int64_t unit) {
  size_t b = buckets().size() - 1;
  while (buckets()[b].first_layer > unit) --b;
  if (gathered_[b] <= weights_seen_) return;
  weights_seen_ = gathered_[b];
  wait_for(gathered_[b], name_of(b));
}

void Zero1Store::gather_weights() {
  communicator_.after_device();
  for (size_t b = 0; b < buckets().size(); ++b) gather_bucket(b);
  communicator_.device_after(communicator_.last());
}

Tensor Zero1Store::gather(const Tensor& mine, const char* what) {
  communicator_.after_device();
  for (size_t b = 0; b < buckets().size(); ++b)
    communicator_.all_gather(range(gradients_.flat, b), share_of(mine, b), what);
  communicator_.wait(communicator_.last());
  return gradients_.flat;
}

void Zero1Store::keep_mine(const Tensor& mine) {
  for (const ShardPart& part : owned_) {
    device_.copy(mine.rows(part.local, part.elements),
                 gradients_.flat.rows(part.begin, part.elements));
  }
  device_.zero(gradients_.flat);
}

}  // namespace

std::unique_ptr<ParameterStore> make_parameter_store(const ModelConfig& config,
                                                     const DataParallelOptions& options,
                                                     Communicator& communicator, Device& device,
                                                     const Ops& ops, const Tensor& loss,
                                                     Arena& arena) {
  // A single rank needs no collectives, unless --comm nccl asks for them.
  if (communicator.kind() == CommKind::self)
    return std::make_unique<LocalStore>(config, ops, arena);
  if (options.zero_stage >= 1 && communicator.size() > 1) {
    return std::make_unique<Zero1Store>(config, options, communicator, device, ops, loss, arena);
  }
  return std::make_unique<ReplicatedStore>(config, options, communicator, device, ops, loss, arena);
}

}  // namespace lathe
