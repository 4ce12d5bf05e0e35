#include "src/parallel/data_parallel.h"

#include <optional>
#include <vector>

#include "src/parallel/gradient_reduction.h"
#include "src/parallel/weight_gathering.h"

namespace lathe {

namespace {

class DataParallelStore final : public ParameterStore {
 public:
  DataParallelStore(const ModelConfig& config, const DataParallelOptions& options,
                    Communicator& communicator, Device& device, const Ops& ops, const Tensor& loss,
                    Arena& arena);

  void need(Pass pass, int64_t unit) override {
    if (gathering_) gathering_->need(pass, unit);
  }
  void need_gradients(size_t slot) override { reduction_->need(ops(), slot); }
  void gradients_final(size_t slot) override;
  void await_update(size_t range) override;
  void add_up_squares(const Tensor& squares) override;

  void begin_step(int slot) override;
  bool begin_backward(int64_t micro_step, bool last) override {
    last_micro_step_ = last;
    return reduction_->begin_backward(micro_step, last);
  }
  void finish_gradients() override { reduction_->finish(ops()); }
  std::span<const Span> spans(int slot) const override { return spans_.of(slot); }

  void gather_weights() override;
  bool weights_stay() const override { return !gathering_ || gathering_->all_stay(); }
  void begin_forward() override;
  Tensor weights_of(size_t bucket) override;
  void add_up_loss() override;
  Tensor gather(size_t bucket, const Tensor& mine, const char* what) override;
  void complete(size_t bucket, const Tensor& mine, const char* what) override;

 private:
  // Gathers a bucket's shares, of which `mine` is this rank's.
  void gather_parts(size_t bucket, const Tensor& all, const Tensor& mine, const char* what);
  // Enqueues the all-reduce of a small tensor.
  void sum(const Tensor& tensor, const char* what) {
    communicator_.all_reduce(tensor, tensor, Reduction::sum, what);
  }
  bool owns_all() const { return !gathering_; }

  Communicator& communicator_;
  Device& device_;
  StepSpans spans_;
  Tensor loss_;
  std::optional<WeightGathering> gathering_;  // stages 1 to 3
  std::optional<GradientReduction> reduction_;
  bool last_micro_step_ = false, loss_summed_ = false;
};

DataParallelStore::DataParallelStore(const ModelConfig& config, const DataParallelOptions& options,
                                     Communicator& communicator, Device& device, const Ops& ops,
                                     const Tensor& loss, Arena& arena)
    : ParameterStore(config, sharding_of(options, communicator.size()), ops),
      communicator_(communicator),
      device_(device),
      spans_(communicator, device),
      loss_(loss) {
  LATHE_CHECK(options.zero_stage < 2 || options.reduce_each_micro_step);
  const bool of_all = options.zero_stage == 0;
  const DType dtype = ops.dtype();
  std::vector<ShardPart> shares = layout_.share(communicator.rank());
  ModelParameters weights;
  if (of_all) {
    weights = allocate_all(MemoryCategory::weights, dtype, arena);
  } else {
    const int64_t slots = options.zero_stage == 3 ? options.zero_slots : 0;
    gathering_.emplace(layout_, shares, dtype, slots, options.weights, communicator, spans_, arena);
    weights = gathering_->views();
  }
  reduction_.emplace(layout_, shares, accumulator_of(dtype),
                     ReductionOptions{.each_micro_step = options.reduce_each_micro_step,
                                      .slots = options.zero_slots + 1,
                                      .in_bf16 = options.reduce_bf16 && communicator.size() > 1,
                                      .of_all = of_all},
                     communicator, device, spans_, arena);
  place(weights, reduction_->views());
  if (!of_all) {
    own(shares, gathering_->shares(), reduction_->sums());
    // If this rank's shares are all it keeps, they lie together, except for the embeddings.
    if (!gathering_->all_stay()) updates_ = {{0, 1}, {1, shares.size()}};
    return;
  }
  const std::vector<ShardPart> all = layout_.whole();
  own(all, parts_of(weights_.flat, all), reduction_->sums());
  updates_ = {{1, all.size()}, {0, 1}};  // the embeddings last
  for (size_t b = 0; b < all.size(); ++b) shares[b].local = shares[b].begin;
  share_ = shares;
}

void DataParallelStore::begin_step(int slot) {
  spans_.begin(slot);
  loss_summed_ = false;
  if (gathering_) gathering_->begin_step();
}

// The loss is final before the first bucket of the last micro-step.
void DataParallelStore::gradients_final(size_t slot) {
  if (!reduction_->final(ops(), slot) || !last_micro_step_ || loss_summed_) return;
  spans_.run("loss", [this] { sum(loss_, "loss"); });
  loss_summed_ = true;
}

void DataParallelStore::add_up_squares(const Tensor& squares) {
  communicator_.after_device();
  const Ticket norm = spans_.run("norm", [&] { sum(squares, "norm"); });
  if (owns_all()) reduction_->gather_embeddings();
  spans_.wait(norm, "norm");
}

void DataParallelStore::await_update(size_t range) {
  if (owns_all() && range + 1 == updates_.size()) reduction_->await_embeddings(ops());
}

void DataParallelStore::gather_weights() {
  spans_.end();
  if (gathering_) gathering_->gather();
}

void DataParallelStore::begin_forward() {
  spans_.end();
  if (gathering_) gathering_->begin_forward();
}

Tensor DataParallelStore::weights_of(size_t bucket) {
  return gathering_ ? gathering_->bucket(bucket) : ParameterStore::weights_of(bucket);
}

void DataParallelStore::add_up_loss() {
  communicator_.after_device();
  sum(loss_, "loss");
  communicator_.device_after(communicator_.last());
}

Tensor DataParallelStore::gather(size_t bucket, const Tensor& mine, const char* what) {
  if (owns_all()) return mine;
  const Tensor& all = reduction_->memory(bucket);
  gather_parts(bucket, all, mine, what);
  return all;
}

void DataParallelStore::complete(size_t bucket, const Tensor& mine, const char* what) {
  if (!owns_all()) return;
  const ShardPart& share = share_[bucket];
  const Tensor& all = reduction_->memory(bucket);
  const int64_t before = share.begin - layout_.buckets[bucket].begin;
  gather_parts(bucket, all, mine.rows(before, share.elements), what);
  device_.copy(mine, all);
}

// From any space into the device's, where collectives work.
void DataParallelStore::gather_parts(size_t bucket, const Tensor& all, const Tensor& mine,
                                     const char* what) {
  const ShardPart& share = share_[bucket];
  const Tensor part = all.rows(share.begin - layout_.buckets[bucket].begin, share.elements);
  if (part.data != mine.data) device_.copy(part, mine);
  communicator_.after_device();
  communicator_.wait(communicator_.all_gather(all, part, what));
}

}  // namespace

Sharding sharding_of(const DataParallelOptions& options, int64_t ranks) {
  return {.ranks = ranks,
          .bucket_elements = options.bucket_elements,
          .whole_layers = options.zero_stage == 3};
}

namespace {

// A single rank needs no collectives, unless --comm nccl asks for them, or its weights lie on the
// host.
bool is_local(const DataParallelOptions& options, const Communicator& communicator) {
  const bool offloads = options.zero_stage == 3 && options.weights != MemorySpace::device;
  return communicator.kind() == CommKind::self && !offloads;
}

}  // namespace

bool reduces_each_micro_step(const DataParallelOptions& options, const Communicator& communicator) {
  return options.reduce_each_micro_step && !is_local(options, communicator);
}

std::unique_ptr<ParameterStore> make_parameter_store(const ModelConfig& config,
                                                     const DataParallelOptions& options,
                                                     Communicator& communicator, Device& device,
                                                     const Ops& ops, const Tensor& loss,
                                                     Arena& arena) {
  if (is_local(options, communicator)) return std::make_unique<LocalStore>(config, ops, arena);
  return std::make_unique<DataParallelStore>(config, options, communicator, device, ops, loss,
                                             arena);
}

}  // namespace lathe
