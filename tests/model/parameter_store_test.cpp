// The model's calls to a store suffice to take parameters away while nobody uses them, and to pass
// gradients on as soon as they are final.
#include "src/model/parameter_store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "tests/model/harness.h"

namespace lathe::testing {
namespace {

const ModelConfig kConfig{.n_layer = 3,
                          .n_head = 2,
                          .n_embd = 24,
                          .vocab_size = 40,
                          .seq_len = 9,
                          .bias = true,
                          .dropout = 0.1f,
                          .gelu = Gelu::tanh};
constexpr int64_t kBatch = 2, kMicroSteps = 3;

// Everything is always available, as in LocalStore.
class PlainStore : public ParameterStore {
 public:
  PlainStore(Device& device, Arena& arena)
      : ParameterStore(kConfig, {}, device.ops(DType::fp32)), device_(device) {
    const ModelParameters weights = allocate_all(MemoryCategory::weights, DType::fp32, arena);
    place(weights, allocate_all(MemoryCategory::gradients, DType::fp32, arena));
  }
  bool begin_backward(int64_t micro_step, bool) override {
    running_ = true;
    return micro_step > 0;
  }
  void finish_gradients() override { running_ = false; }

 protected:
  // Elements [begin, end) of a flat buffer that belong to a unit's parameters.
  std::pair<int64_t, int64_t> range_of(int64_t unit) const {
    const auto unit_of = [](const ParameterSlot& slot) {
      if (slot.spec.layer >= 0) return slot.spec.layer;
      return slot.spec.name.starts_with("ln_f") ? kConfig.n_layer : kEmbeddings;
    };
    int64_t begin = -1, end = layout_.elements;
    for (const ParameterSlot& slot : layout_.slots) {
      if (begin < 0 && unit_of(slot) == unit) begin = slot.offset;
      if (begin >= 0 && unit_of(slot) != unit) {
        end = slot.offset;
        break;
      }
    }
    return {begin, end};
  }
  void fill_with_nan(const Tensor& tensor) const {
    const std::vector<float> values(static_cast<size_t>(tensor.elements()),
                                    std::numeric_limits<float>::quiet_NaN());
    device_.upload(tensor, values.data());
  }

  Device& device_;
  bool running_ = false;
};

// Weights are NaN except between need() and release(), as with ZeRO stage 3.
class FleetingWeights final : public PlainStore {
 public:
  using PlainStore::PlainStore;
  // Call it once the initial weights are there.
  void take_away() {
    all_ = values_of(device_, weights_.flat);
    fill_with_nan(weights_.flat);
    running_ = true;
  }
  void need(Pass, int64_t unit) override {
    if (!running_) return;
    EXPECT_TRUE(there_.insert(unit).second) << "unit " << unit << " is there already";
    const auto [begin, end] = range_of(unit);
    const std::vector<float> values(all_.begin() + begin, all_.begin() + end);
    device_.upload(weights_.flat.rows(begin, end - begin), values.data());
    most_ = std::max(most_, there_.size());
  }
  void release(Pass, int64_t unit) override {
    if (!running_) return;
    EXPECT_EQ(there_.erase(unit), 1u) << "unit " << unit << " was not there";
    const auto [begin, end] = range_of(unit);
    fill_with_nan(weights_.flat.rows(begin, end - begin));
  }
  size_t most() const { return most_; }
  bool empty() const { return there_.empty(); }

 private:
  std::vector<double> all_;
  std::set<int64_t> there_;
  size_t most_ = 0;
};

// Gradients are NaN from when they are final until the next micro-step needs them, as with stage 2.
class FleetingGradients final : public PlainStore {
 public:
  using PlainStore::PlainStore;
  bool begin_backward(int64_t micro_step, bool) override {
    running_ = true;
    first_final_ = layout_.elements;
    return micro_step > 0;
  }
  // The model may write from here on, up to where the next bucket may start.
  void need_gradients(size_t slot) override {
    if (!running_) return;
    const int64_t begin = layout_.slots[slot].offset;
    int64_t end = layout_.elements;
    for (size_t i = layout_.slots.size(); i-- > slot + 1;) {
      if (layout_.slots[i].spec.cut || i == gradients_.ln_f_slot) end = layout_.slots[i].offset;
    }
    for (auto piece = kept_.lower_bound(begin); piece != kept_.end() && piece->first < end;) {
      const auto count = static_cast<int64_t>(piece->second.size());
      EXPECT_LE(piece->first + count, end) << "a bucket would end elsewhere";
      device_.upload(gradients_.flat.rows(piece->first, count), piece->second.data());
      piece = kept_.erase(piece);
    }
    EXPECT_GE(first_final_, end) << layout_.slots[slot].spec.name << " was final";
  }
  void gradients_final(size_t slot) override {
    if (!running_) return;
    const int64_t begin = layout_.slots[slot].offset;
    ASSERT_LT(begin, first_final_);
    const Tensor part = gradients_.flat.rows(begin, first_final_ - begin);
    const std::vector<double> values = values_of(device_, part);
    for (double value : values) ASSERT_FALSE(std::isnan(value)) << layout_.slots[slot].spec.name;
    kept_[begin].assign(values.begin(), values.end());
    fill_with_nan(part);
    first_final_ = begin;
    slots_.insert(slot);
  }
  void finish_gradients() override {
    EXPECT_EQ(first_final_, 0);
    for (const auto& [at, values] : kept_)
      device_.upload(gradients_.flat.rows(at, static_cast<int64_t>(values.size())), values.data());
    kept_.clear();
    running_ = false;
    // A bucket may start wherever the parameters allow it.
    for (size_t i = 0; i < layout_.slots.size(); ++i)
      EXPECT_TRUE(!layout_.slots[i].spec.cut || slots_.contains(i)) << layout_.slots[i].spec.name;
  }

 private:
  std::map<int64_t, std::vector<float>> kept_;  // by their first element
  int64_t first_final_ = 0;
  std::set<size_t> slots_;
};

// An evaluation, then a step of several micro-steps, on a store of this kind.
template <typename Store>
struct Step {
  explicit Step(Recompute recompute)
      : device(make_test_device(DType::fp32)),
        arena(*device, size_t{64} << 20),
        state(*device, arena, kMicroSteps),
        store(*device, arena),
        kept(kConfig, DType::fp32, kBatch, kConfig.seq_len, recompute, arena),
        model(kConfig, store, kept, *device, arena),
        tokens(arena.allocate(MemoryCategory::batch, DType::int32, {kBatch, kConfig.seq_len})),
        targets(arena.allocate(MemoryCategory::batch, DType::int32, {kBatch, kConfig.seq_len})) {
    initialize_parameters(store.layout(), 3, 0, store.weights().flat, *device);
    std::mt19937 random(7);
    std::vector<int32_t> ids(static_cast<size_t>(tokens.elements()));
    for (const Tensor& ids_of : {tokens, targets}) {
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % kConfig.vocab_size);
      device->upload(ids_of, ids.data());
    }
  }
  void run() {
    std::vector<StepInputs> inputs(kMicroSteps);
    for (size_t m = 0; m < inputs.size(); ++m) inputs[m] = {.seed = 5, .first_sequence = 2 * m};
    state.begin(model.ops(), inputs);
    const MicroBatch first{tokens, targets, state.inputs(0), &kept};
    model.forward(first, false);
    model.loss(first, 1, state.device_results());
    for (int64_t m = 0; m < kMicroSteps; ++m) {
      const MicroBatch batch{tokens, targets, state.inputs(m), &kept};
      model.forward(batch, true);
      const bool add = store.begin_backward(m, m + 1 == kMicroSteps);
      model.loss_and_backward(batch, 0.01, state.device_results(), add);
    }
    store.finish_gradients();
  }
  std::vector<double> outcome() {
    std::vector<double> all = values_of(*device, store.gradients().flat);
    all.push_back(state.results().loss);
    return all;
  }

  std::unique_ptr<Device> device;
  Arena arena;
  StepState state;
  Store store;
  Activations kept;
  Transformer model;
  Tensor tokens, targets;
};

const Recompute kLevels[] = {Recompute::none, Recompute::gelu, Recompute::layernorm,
                             Recompute::block};

TEST(ParameterStore, TheModelReadsWeightsOnlyWhileItNeedsThem) {
  for (const Recompute recompute : kLevels) {
    Step<PlainStore> plain(recompute);
    plain.run();
    Step<FleetingWeights> fleeting(recompute);
    fleeting.store.take_away();
    fleeting.run();
    EXPECT_TRUE(fleeting.store.empty());
    EXPECT_EQ(fleeting.store.most(), 1u);  // units at a time
    EXPECT_EQ(fleeting.outcome(), plain.outcome()) << name_of(recompute);
  }
}

TEST(ParameterStore, TheModelWritesNoGradientThatIsFinal) {
  for (const Recompute recompute : kLevels) {
    Step<PlainStore> plain(recompute);
    plain.run();
    Step<FleetingGradients> fleeting(recompute);
    fleeting.run();
    EXPECT_EQ(fleeting.outcome(), plain.outcome()) << name_of(recompute);
  }
}

}  // namespace
}  // namespace lathe::testing
