// Training steps with several ranks: gradients, loss, norm and weights equal those of the whole
// batch.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include "kernels/observed_ops.h"
#include "src/comm/make_communicator.h"
#include "src/model/weights.h"
#include "src/parallel/agreement.h"
#include "src/train.h"
#include "tests/comm/harness.h"

namespace lathe::testing {
namespace {

const ModelConfig kConfig{.n_layer = 3,
                          .n_head = 2,
                          .n_embd = 24,
                          .vocab_size = 61,
                          .seq_len = 7,
                          .bias = true,
                          .dropout = 0.1f};

// The smallest model that does not fit into two slots, with dropout, because it is trained hundreds
// of times.
const ModelConfig kLeast{.n_layer = 3,
                         .n_head = 1,
                         .n_embd = 8,
                         .vocab_size = 17,
                         .seq_len = 4,
                         .bias = false,
                         .dropout = 0.1f};

struct Options {
  DType dtype = DType::bf16;
  int64_t stage = 0, slots = 2;
  bool reduce_bf16 = false;
  int64_t micro_steps = 1;
  bool each_micro_step = false;
  ModelConfig config = kConfig;
  int64_t bucket_elements = 0;
  bool stochastic_rounding = false;
  Recompute recompute = Recompute::none;
  Offload offload{};
};

// Writes a NaN into the gradients after the first backward pass of a LayerNorm.
class PoisonOps final : public ObservedOps {
 public:
  explicit PoisonOps(const Trainer& trainer)
      : ObservedOps(trainer.ops()),
        device_(trainer.device),
        gradient_(trainer.parameters->gradients().ln_f_weight) {}

 protected:
  bool before(const Call&) const override { return true; }
  void after(const Call& call) const override {
    if (call.name != LayerNormBackward::kName || std::exchange(done_, true)) return;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    device_.upload(gradient_.rows(0, 1), &nan);
  }

 private:
  Device& device_;
  Tensor gradient_;
  mutable bool done_ = false;
};

// Many chunks, though the model is small.
Offload in_chunks(StatesPlace states) {
  return {.states = states, .directory = ::testing::TempDir(), .chunk = 256, .host = [] {
            return make_cpu_device();
          }};
}

// A rank in the middle of training. Sequence s of a step is the same on whichever rank it is.
struct Rank {
  Rank(Ranks& on, const Options& options)
      : ranks(on),
        device(*on.device),
        config(options.config),
        optimizer{.stochastic_rounding = options.stochastic_rounding},
        shape{.dtype = options.dtype,
              .batch_size = 2,
              .seq_len = config.seq_len,
              .micro_steps = options.micro_steps,
              .recompute = options.recompute,
              .parallel = {.bucket_elements = options.bucket_elements,
                           .zero_stage = options.stage,
                           .zero_slots = options.slots,
                           .reduce_each_micro_step = options.each_micro_step || options.stage >= 2,
                           .reduce_bf16 = options.reduce_bf16,
                           .weights =
                               options.stage == 3 ? options.offload.weights : MemorySpace::device},
              .offload = options.offload},
        plan(plan_training(config, optimizer, shape, device, Mesh(*on.comm))),
        arena(device, plan.total(), plan.total(MemorySpace::pinned)),
        trainer(config, optimizer, shape, device, Mesh(*on.comm), arena) {
    trainer.set_masters([this](int64_t begin, const Tensor& to) {
      initialize_parameters(trainer.parameters->layout(), 5, begin, to, device);
    });
    trainer.round_weights(0);
  }

  ~Rank() {
    device.synchronize();
    device.forget_recordings();  // they use this rank's memory
  }

  // `vote`: this rank votes to stop; `poison`: a gradient of this rank is NaN.
  void enqueue(uint32_t step, bool vote = false, bool poison = false) {
    const int64_t sequences = shape.batch_size, micro_steps = shape.micro_steps;
    for (int64_t m = 0; m < micro_steps; ++m) {
      const int64_t first = (ranks.comm->rank() * micro_steps + m) * sequences;
      std::vector<int32_t> in, out;
      for (int64_t i = 0; i < sequences * config.seq_len; ++i) {
        const int64_t place = first * config.seq_len + i + 1000 * step;
        in.push_back(static_cast<int32_t>(place * 7919 % config.vocab_size));
        out.push_back(static_cast<int32_t>((place + 1) * 7919 % config.vocab_size));
      }
      trainer.upload(m, in.data(), out.data());
    }
    trainer.begin({.seed = 3, .step = step, .learning_rate = 1e-2, .stop_vote = vote ? 1.0 : 0.0});
    const int slot = static_cast<int>(step % Trainer::kSlots);
    if (poison) {
      const Ops& plain = trainer.ops();
      const PoisonOps ops(trainer);
      trainer.use(ops);
      enqueue_step(trainer, slot);
      trainer.use(plain);
    } else {
      device.replay(slot, [this, slot] { enqueue_step(trainer, slot); });
    }
    trainer.state.request_results();
  }

  Bytes bytes_of(const Tensor& tensor) {
    Bytes bytes(tensor.bytes());
    device.download(bytes.data(), tensor);
    return bytes;
  }
  // What tensor_of(b) holds of each bucket b, without padding, which depends on the stage.
  template <typename TensorOf>
  Bytes all(const TensorOf& tensor_of) {
    const ParameterLayout& layout = trainer.parameters->layout();
    Bytes bytes;
    for (size_t b = 0; b < layout.buckets.size(); ++b) {
      const Tensor bucket = tensor_of(b);
      for (size_t i = 0; i < layout.slots.size(); ++i) {
        if (layout.bucket_of_slot[i] != b) continue;
        const ParameterSlot& slot = layout.slots[i];
        const Bytes part = bytes_of(
            bucket.rows(slot.offset - layout.buckets[b].begin, slot.spec.shape.elements()));
        bytes.insert(bytes.end(), part.begin(), part.end());
      }
    }
    return bytes;
  }
  Bytes weights() {
    trainer.parameters->gather_weights();
    return all([this](size_t b) { return trainer.parameters->weights_of(b); });
  }
  Bytes masters() {
    return all([this](size_t b) { return trainer.gathered_masters(b); });
  }
  Bytes moments(OptimizerState which) {
    Bytes flat;
    const auto& owned = trainer.parameters->owned();
    for (const auto& [part, weights, gradients] : owned) {
      trainer.optimizer.read(which, part.local, part.elements, [&](int64_t, const Tensor& some) {
        const Bytes more = bytes_of(some);
        flat.insert(flat.end(), more.begin(), more.end());
      });
    }
    size_t next = 0;
    return all([&](size_t b) {
      const Tensor mine = owned[b].gradients;  // whose memory is free here
      device.upload(mine, flat.data() + next);
      next += mine.bytes();
      return trainer.parameters->gather(b, mine, "moments");
    });
  }

  Ranks& ranks;
  Device& device;
  ModelConfig config;
  OptimizerConfig optimizer;
  StepShape shape;
  MemoryPlan plan;
  Arena arena;
  Trainer trainer;
};

struct Outcome {
  std::vector<double> losses, norms;
  Bytes weights, masters, m, v;
  bool operator==(const Outcome&) const = default;
};

Outcome train(Ranks& ranks, const Options& options, int steps = 3) {
  Rank rank(ranks, options);
  Outcome outcome;
  const auto collect = [&] {
    const StepResults results = rank.trainer.collect_results();
    outcome.losses.push_back(results.loss);
    outcome.norms.push_back(results.grad_norm);
  };
  for (int step = 0; step < steps; ++step) {
    rank.enqueue(static_cast<uint32_t>(step));
    if (step > 0) collect();
  }
  collect();
  outcome.weights = rank.weights();
  outcome.masters = rank.masters();
  outcome.m = rank.moments(OptimizerState::m);
  outcome.v = rank.moments(OptimizerState::v);
  return outcome;
}

// The kinds of communicators, each once.
std::vector<CommKind> kinds_under_test() {
  std::vector<CommKind> kinds;
  for (const Variant& variant : variants_under_test()) {
    if (kinds.empty() || kinds.back() != variant.kind) kinds.push_back(variant.kind);
  }
  return kinds;
}

class DataParallelTest : public ::testing::TestWithParam<CommKind> {};

TEST_P(DataParallelTest, EveryRankHasTheSameWeights) {
  Ranks ranks(GetParam());
  for (const Options& options :
       {Options{}, Options{.stage = 1}, Options{.dtype = DType::fp32, .stage = 1, .micro_steps = 2},
        Options{.stage = 1, .reduce_bf16 = true}, Options{.stage = 2, .micro_steps = 2},
        Options{.stage = 3}}) {
    Rank rank(ranks, options);
    for (uint32_t step = 0; step < 3; ++step) {
      rank.enqueue(step);
      EXPECT_EQ(rank.trainer.state.collect_results().skip, 0);
    }
    rank.trainer.compare_replicas();
  }
}

// One bit differs on one rank: all ranks report that rank.
TEST_P(DataParallelTest, AReplicaThatDiffersIsNamed) {
  Ranks ranks(GetParam());
  if (ranks.comm->size() == 1) GTEST_SKIP() << "nothing to differ from";
  Rank rank(ranks, {.dtype = DType::fp32});
  const Tensor weight = rank.trainer.parameters->weights().flat.rows(77, 1);
  if (ranks.comm->rank() == 1) {
    Bytes bytes = rank.bytes_of(weight);
    bytes[0] ^= std::byte{1};
    rank.device.upload(weight, bytes.data());
  }
  try {
    require_same(*ranks.comm, "the weights",
                 digest_of(rank.device, rank.trainer.parameters->weights().flat),
                 "look at that host");
    ADD_FAILURE() << "nothing was noticed";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "the weights of rank 1 differ from rank 0's: look at that host");
  }
}

// One micro-step on each of n ranks equals n micro-steps on one rank.
TEST_P(DataParallelTest, IsAccumulation) {
  Ranks ranks(GetParam());
  const Outcome together = train(ranks, {.dtype = DType::fp32});
  Ranks alone(GetParam());
  alone.comm = make_self_communicator(*alone.device);
  const Outcome one = train(alone, {.dtype = DType::fp32, .micro_steps = ranks.comm->size()});
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(together.losses[i], one.losses[i], 1e-5);
    EXPECT_NEAR(together.norms[i], one.norms[i], 1e-5 * one.norms[i]);
  }
}

void expect_equal(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_TRUE(a.weights == b.weights);
  EXPECT_TRUE(a.masters == b.masters);
  EXPECT_TRUE(a.m == b.m);
  EXPECT_TRUE(a.v == b.v);
}

TEST_P(DataParallelTest, StagesAreBitwiseEqual) {
  Ranks ranks(GetParam());
  const Options cases[] = {
      {.dtype = DType::fp32},
      {.stochastic_rounding = true, .recompute = Recompute::block},
      {.reduce_bf16 = true, .bucket_elements = 3000},
      {.dtype = DType::fp32, .micro_steps = 3, .each_micro_step = true, .bucket_elements = 3000},
      {.micro_steps = 2, .each_micro_step = true, .recompute = Recompute::gelu},
      {.reduce_bf16 = true, .micro_steps = 3, .each_micro_step = true, .stochastic_rounding = true},
  };
  for (size_t c = 0; c < std::size(cases); ++c) {
    Options options = cases[c];
    const Outcome zero = train(ranks, options);
    for (options.stage = 1; options.stage <= 3; ++options.stage) {
      SCOPED_TRACE(fmt::format("case {}, stage {}", c, options.stage));
      expect_equal(zero, train(ranks, options));
    }
  }
  // Without --reduce-each micro-step, stages 0 and 1 add up the micro-steps on each rank.
  expect_equal(train(ranks, {.micro_steps = 2}), train(ranks, {.stage = 1, .micro_steps = 2}));
}

// The bits do not depend on the memory space of masters, moments and weights.
TEST_P(DataParallelTest, OffloadChangesNoBits) {
  Ranks ranks(GetParam());
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const int64_t stage : {0, 1, 3}) {
      SCOPED_TRACE(fmt::format("{}, stage {}", name_of(dtype), stage));
      const Options options{
          .dtype = dtype, .stage = stage, .stochastic_rounding = dtype == DType::bf16};
      const Outcome expected = train(ranks, options);
      for (const StatesPlace states :
           {StatesPlace::pinned, StatesPlace::host, StatesPlace::files}) {
        if (states == StatesPlace::files && stage == 0 && ranks.comm->size() > 1) continue;
        SCOPED_TRACE(fmt::format("states {}", static_cast<int>(states)));
        Options offloaded = options;
        offloaded.offload = in_chunks(states);
        offloaded.offload.weights = MemorySpace::pinned;
        const Outcome outcome = train(ranks, offloaded);
        if (states != StatesPlace::host || ranks.device->kind() == DeviceKind::cpu) {
          expect_equal(expected, outcome);
          continue;
        }
        // The host's AdamW may round otherwise than a GPU's, but its chunks change nothing.
        EXPECT_NEAR(outcome.losses.back(), expected.losses.back(), 1e-5);
        offloaded.offload.chunk = kOffloadChunk;
        expect_equal(outcome, train(ranks, offloaded));
      }
    }
  }
}

// Buckets and slots decide what is there when, but change no bits.
TEST_P(DataParallelTest, BucketsChangeNoBits) {
  Ranks ranks(GetParam());
  const Outcome each = train(ranks, {.stage = 3, .micro_steps = 2, .stochastic_rounding = true});
  for (const int64_t stage : {2, 3}) {
    for (const auto& [elements, slots] :
         {std::pair<int64_t, int64_t>{1000, 2}, {3000, 3}, {0, 3}, {0, 4}, {1 << 20, 9}}) {
      SCOPED_TRACE(fmt::format("stage {}, {} elements, {} slots", stage, elements, slots));
      expect_equal(each, train(ranks, {.stage = stage,
                                       .slots = slots,
                                       .micro_steps = 2,
                                       .bucket_elements = elements,
                                       .stochastic_rounding = true}));
    }
  }
}

TEST_P(DataParallelTest, ANanOnOneRankIsSkippedByAll) {
  Ranks ranks(GetParam());
  struct Case {
    int64_t stage;
    DType dtype = DType::bf16;
    StatesPlace states = StatesPlace::device;
  };
  for (const auto& [stage, dtype, states] :
       {Case{0}, Case{1}, Case{2}, Case{3}, Case{0, DType::fp32, StatesPlace::host},
        Case{0, DType::bf16, StatesPlace::host}, Case{3, DType::bf16, StatesPlace::host},
        Case{1, DType::bf16, StatesPlace::files}}) {
    SCOPED_TRACE(fmt::format("stage {}, states {}", stage, static_cast<int>(states)));
    Rank rank(ranks, {.dtype = dtype,
                      .stage = stage,
                      .stochastic_rounding = dtype == DType::bf16,
                      .offload = in_chunks(states)});
    rank.enqueue(0);
    EXPECT_EQ(rank.trainer.collect_results().updates, 1);
    const Bytes before = rank.weights();
    rank.enqueue(1, false, ranks.comm->rank() == ranks.comm->size() - 1);
    const StepResults results = rank.trainer.collect_results();
    EXPECT_EQ(results.skip, 1);
    EXPECT_EQ(results.updates, 1);
    EXPECT_TRUE(std::isfinite(results.loss));
    EXPECT_TRUE(rank.weights() == before);
    rank.enqueue(2);
    EXPECT_EQ(rank.trainer.collect_results().updates, 2);
    EXPECT_FALSE(rank.weights() == before);
  }
}

// What crosses the bus: gradients down and weights up, and in fp32, whose masters are the weights,
// weights down, too.
TEST_P(DataParallelTest, TheHostUpdatesWithTheBytesThatItNeeds) {
  Ranks ranks(GetParam());
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const int64_t stage : {0, 3}) {
      Rank rank(ranks, {.dtype = dtype, .stage = stage, .offload = in_chunks(StatesPlace::host)});
      rank.enqueue(0);
      rank.trainer.collect_results();
      int64_t elements = 0;
      for (const OwnedPart& part : rank.trainer.parameters->owned()) elements += part.part.elements;
      const auto weight = static_cast<int64_t>(size_of(dtype));
      const bool fp32 = dtype == DType::fp32;
      const auto inputs = static_cast<int64_t>(sizeof(StepInputs));
      const auto results = static_cast<int64_t>(sizeof(StepResults));
      const HostUpdate& update = *rank.trainer.optimizer.on_host();
      EXPECT_EQ(update.bytes_down(), elements * (fp32 ? 8 : 4) + inputs + results);
      EXPECT_EQ(update.bytes_up(), elements * weight + results);
    }
  }
}

TEST_P(DataParallelTest, OneVoteStopsAll) {
  Ranks ranks(GetParam());
  Rank rank(ranks, {});
  rank.enqueue(0);
  EXPECT_EQ(rank.trainer.state.collect_results().stop_votes, 0);
  rank.enqueue(1, ranks.comm->rank() == ranks.comm->size() - 1);
  EXPECT_EQ(rank.trainer.state.collect_results().stop_votes, 1);
  rank.enqueue(2);
  EXPECT_EQ(rank.trainer.state.collect_results().stop_votes, 0);
}

// A rank holds only its share of masters and moments, plus padding, as the plan predicts.
TEST_P(DataParallelTest, OptimizerMemoryIsShared) {
  Ranks ranks(GetParam());
  for (DType dtype : {DType::fp32, DType::bf16}) {
    for (const int64_t stage : {1, 2, 3}) {
      Rank rank(ranks, {.dtype = dtype, .stage = stage, .reduce_bf16 = stage == 2});
      EXPECT_EQ(rank.arena.used(), rank.plan)
          << to_string(rank.arena.used()) << to_string(rank.plan);
      const int64_t size = ranks.comm->size();
      const int64_t total = ParameterLayout(kConfig).elements;
      const int64_t buckets =
          static_cast<int64_t>(rank.trainer.parameters->layout().buckets.size());
      EXPECT_LE(rank.trainer.optimizer.m().elements(),
                (total + size - 1) / size + buckets * kParameterAlignment);
    }
  }
}

// The results do not depend on the order in which a GPU runs its streams, or on how far it is
// ahead.
TEST_P(DataParallelTest, IsTheSameInEveryOrderOfStreams) {
  Ranks ranks(GetParam());
  if (ranks.device->kind() == DeviceKind::cpu) GTEST_SKIP() << "no streams";
  // Four ranks on two cores are slow; each still has seeds of its own.
  const int most = ranks.comm->size() > 2 ? 8 : 60;
  const int seeds_of_mpi = most / 10;
  struct Case {
    Options options;
    int part_of_seeds;
  };
  ModelConfig deeper = kLeast;
  deeper.n_layer = 5;  // so that inputs of layers leave the device
  const Case cases[] = {
      {{.config = kLeast, .bucket_elements = 500}, 4},
      {{.stage = 1,
        .config = kLeast,
        .bucket_elements = 500,
        .offload = in_chunks(StatesPlace::host)},
       4},
      {{.stage = 2,
        .micro_steps = 2,
        .config = kLeast,
        .bucket_elements = 500,
        .offload = in_chunks(StatesPlace::files)},
       4},
      {{.stage = 3, .micro_steps = 2, .config = kLeast, .bucket_elements = 500}, 1},
      {{.stage = 3,
        .micro_steps = 2,
        .config = deeper,
        .bucket_elements = 1 << 20,
        .recompute = Recompute::block,
        .offload = {.states = StatesPlace::pinned, .inputs = true, .weights = MemorySpace::pinned}},
       2}};
  for (const auto& [options, part] : cases) {
    SCOPED_TRACE(fmt::format("stage {}, {} layers", options.stage, options.config.n_layer));
    const int seeds = GetParam() == CommKind::nccl ? most / part : seeds_of_mpi;
    const Outcome first = train(ranks, options);
    for (int seed = 1; seed <= seeds; ++seed) {
      set_stream_seed(seed * 64 + ranks.comm->rank());
      ASSERT_TRUE(train(ranks, options) == first) << "seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DataParallelTest, ::testing::ValuesIn(kinds_under_test()));

}  // namespace
}  // namespace lathe::testing
