#include "src/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

// Token i is i, so that a batch shows where it comes from; shards have 7 tokens, so that most
// windows cross a border.
class LoaderTest : public testing::Test {
 protected:
  void write(int64_t tokens, const std::string& split = "train") {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    std::iota(ids.begin(), ids.end(), 0);
    ShardWriter writer(dir_.path(), split, 7);
    writer.append(ids);
    writer.finish();
  }
  LoaderOptions options(int64_t seq_len, int64_t batch_size, Sampling sampling) {
    LoaderOptions o;
    o.directory = dir_.path();
    o.seq_len = seq_len;
    o.batch_size = batch_size;
    o.seed = 1337;
    o.sampling = sampling;
    return o;
  }
  TempDir dir_;
};

// Rows are windows of consecutive tokens and the targets are one ahead; returns their starts.
std::vector<int32_t> starts_of(const Batch& batch) {
  std::vector<int32_t> starts;
  for (int64_t b = 0; b < batch.batch_size; ++b) {
    const int32_t* inputs = &batch.inputs[static_cast<size_t>(b * batch.seq_len)];
    const int32_t* targets = &batch.targets[static_cast<size_t>(b * batch.seq_len)];
    for (int32_t t = 0; t < batch.seq_len; ++t) {
      EXPECT_EQ(inputs[t], inputs[0] + t);
      EXPECT_EQ(targets[t], inputs[t] + 1);
    }
    starts.push_back(inputs[0]);
  }
  return starts;
}

TEST_F(LoaderTest, RandomWindowsFollowTheirFunction) {
  write(100);
  LoaderOptions o = options(8, 3, Sampling::random);
  Loader loader(o);
  for (int64_t step = 0; step < 50; ++step) {
    const Batch& batch = loader.next();
    const auto starts = starts_of(batch);
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_EQ(starts[static_cast<size_t>(i)], random_window(1337, step, i, 100, 8));
    }
    EXPECT_EQ(batch.counted_targets, 24);
  }
}

TEST(RandomWindow, IsUniformFromEndToEnd) {
  constexpr int64_t kDraws = 40000;
  std::map<int64_t, int64_t> counts;
  for (int64_t i = 0; i < kDraws; ++i) ++counts[random_window(5, i / 100, i % 100, 30, 10)];
  ASSERT_EQ(counts.size(), 20u);  // 0 .. 30 - 10 - 1
  EXPECT_EQ(counts.begin()->first, 0);
  EXPECT_EQ(counts.rbegin()->first, 19);
  double chi_squared = 0;
  for (const auto& [start, count] : counts) {
    const double difference = static_cast<double>(count) - kDraws / 20.0;
    chi_squared += difference * difference / (kDraws / 20.0);
  }
  EXPECT_LT(chi_squared, 43.8);  // 19 degrees of freedom: 99.9 %
  EXPECT_EQ(random_window(5, 0, 0, 11, 10), 0) << "one window only";
}

TEST(RandomWindow, ReachesBeyondTwoToThe32) {
  constexpr int64_t kTokens = int64_t{1} << 40;
  int64_t largest = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t start = random_window(1, 0, i, kTokens, 1024);
    EXPECT_GE(start, 0);
    EXPECT_LT(start, kTokens - 1024);
    largest = std::max(largest, start);
  }
  EXPECT_GT(largest, kTokens / 100 * 99);
}

// Sequence s of a step is the same, however the step's 24 sequences are split into ranks,
// micro-steps and batches.
TEST_F(LoaderTest, StepsDoNotDependOnTheLayout) {
  write(200);
  for (Sampling sampling : {Sampling::random, Sampling::sequential}) {
    std::map<std::pair<int64_t, int64_t>, int32_t> expected;  // (step, sequence) -> start
    for (const auto& [world, micro] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {1, 4}, {2, 1}, {2, 3}, {3, 2}, {4, 6}, {24, 1}}) {
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t rank = 0; rank < world; ++rank) {
        LoaderOptions o = options(5, 24 / world / micro, sampling);
        o.rank = rank;
        o.ranks = world;
        o.micro_steps = micro;
        Loader loader(o);
        ASSERT_EQ(loader.sequences_per_step(), 24);
        for (int64_t i = 0; i < 4 * micro; ++i) {
          const int64_t step = loader.position().step;
          const Batch& batch = loader.next();
          const auto starts = starts_of(batch);
          for (size_t row = 0; row < starts.size(); ++row) {
            const std::pair key{step, batch.first_sequence + static_cast<int64_t>(row)};
            EXPECT_TRUE(seen.insert(key).second);
            EXPECT_EQ(expected.try_emplace(key, starts[row]).first->second, starts[row]);
          }
        }
      }
      EXPECT_EQ(seen.size(), 4u * 24u);
    }
    EXPECT_EQ(expected.size(), 4u * 24u);
  }
}

TEST_F(LoaderTest, SequentialUsesEachWindowOnceAnEpoch) {
  write(5 * 13 + 1 + 4);  // 13 windows of 5, and 4 unused tokens
  Loader loader(options(5, 3, Sampling::sequential));
  std::vector<int32_t> starts;
  while (starts.size() < 3 * 13) {
    for (int32_t start : starts_of(loader.next())) starts.push_back(start);
  }
  std::set<std::vector<int32_t>> orders;
  for (size_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int32_t> order(starts.begin() + static_cast<ptrdiff_t>(13 * epoch),
                               starts.begin() + static_cast<ptrdiff_t>(13 * (epoch + 1)));
    orders.insert(order);
    std::sort(order.begin(), order.end());
    for (int32_t i = 0; i < 13; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], 5 * i);
  }
  EXPECT_EQ(orders.size(), 3u) << "each epoch has its own order";
}

TEST(Shuffled, IsABijection) {
  std::vector<int64_t> sizes = {1000, 4096, 4097, 65535, 65536, 65537};
  for (int64_t size = 1; size <= 70; ++size) sizes.push_back(size);
  for (int64_t size : sizes) {
    std::vector<bool> seen(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      const int64_t place = shuffled(i, size, 42, 3);
      ASSERT_TRUE(place >= 0 && place < size);
      ASSERT_FALSE(seen[static_cast<size_t>(place)]) << size;
      seen[static_cast<size_t>(place)] = true;
    }
  }
}

TEST(Shuffled, DependsOnSeedAndEpochAndMixes) {
  constexpr int64_t kSize = 10000;
  int64_t same_epoch = 0, same_seed = 0, fixed = 0, neighbours = 0;
  for (int64_t i = 0; i + 1 < kSize; ++i) {
    const int64_t place = shuffled(i, kSize, 1, 0);
    same_epoch += place == shuffled(i, kSize, 1, 1);
    same_seed += place == shuffled(i, kSize, uint64_t{1} << 32 | 1, 0);
    fixed += place == i;
    neighbours += std::abs(place - shuffled(i + 1, kSize, 1, 0)) == 1;
  }
  for (int64_t count : {same_epoch, same_seed, fixed, neighbours}) EXPECT_LT(count, 12);
  const int64_t large = int64_t{1} << 45;
  for (int64_t i = 0; i < 100; ++i) EXPECT_LT(shuffled(large - 1 - i, large, 1, 0), large);
}

TEST_F(LoaderTest, RestoresExactly) {
  write(150);
  for (Sampling sampling : {Sampling::random, Sampling::sequential}) {
    LoaderOptions o = options(6, 2, sampling);
    o.micro_steps = 3;
    std::vector<std::vector<int32_t>> all;
    std::vector<LoaderPosition> positions;
    Loader loader(o);
    for (int i = 0; i < 40; ++i) {
      positions.push_back(loader.position());
      all.push_back(loader.next().inputs);
    }
    EXPECT_EQ(positions[7], (LoaderPosition{2, 1}));
    for (size_t from : {39u, 0u, 17u, 18u}) {
      loader.restore(positions[from]);
      Loader fresh(o);
      fresh.restore(positions[from]);
      for (size_t i = from; i < std::min<size_t>(from + 6, 40); ++i) {
        EXPECT_EQ(loader.position(), positions[i]);
        EXPECT_EQ(loader.next().inputs, all[i]);
        EXPECT_EQ(fresh.next().inputs, all[i]);
      }
    }
    EXPECT_THROW(loader.restore({0, 3}), CheckError);
    EXPECT_THROW(loader.restore({-1, 0}), CheckError);
  }
}

TEST_F(LoaderTest, BatchStaysWhileOthersAreReadAhead) {
  write(150);
  Loader loader(options(6, 2, Sampling::random));
  for (int i = 0; i < 200; ++i) {
    const Batch& batch = loader.next();
    const std::vector<int32_t> copy = batch.inputs;
    std::this_thread::yield();
    EXPECT_EQ(batch.inputs, copy);
  }
}

TEST_F(LoaderTest, PassesOnATokenOutsideTheVocabulary) {
  write(20);
  LoaderOptions o = options(19, 1, Sampling::random);
  o.vocab_size = 20;
  Loader(o).next();
  o.vocab_size = 19;
  Loader loader(o);
  for (int i = 0; i < 2; ++i) {
    expect_contains(user_error([&] { loader.next(); }), "train_000002.bin holds token 19 at byte");
  }
  EXPECT_EQ(loader.position(), LoaderPosition{});
}

TEST_F(LoaderTest, RefusesWhatCannotWork) {
  write(20);
  const auto said = [&](const LoaderOptions& o) { return user_error([&] { Loader loader(o); }); };
  expect_contains(said(options(20, 1, Sampling::random)), "holds 20 tokens for train");
  expect_contains(said(options(0, 1, Sampling::random)), "--seq-len is 0");
  expect_contains(said(options(4, -1, Sampling::random)), "--batch-size is -1");
  expect_contains(said(options(int64_t{1} << 40, int64_t{1} << 40, Sampling::random)), "too large");
  LoaderOptions o = options(4, 1, Sampling::random);
  o.split = "val";
  expect_contains(said(o), "holds no val_*.bin");
  o.directory = dir_ / "none";
  expect_contains(said(o), "none: No such file");
}

// Every token but the first is a target exactly once, for any layout.
TEST_F(LoaderTest, EvaluationCoversEverything) {
  for (int64_t tokens : {2, 5, 6, 7, 41, 60, 61}) {
    TempDir own;
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    std::iota(ids.begin(), ids.end(), 0);
    ShardWriter writer(own.path(), "val", 7);
    writer.append(ids);
    writer.finish();
    for (const auto& [world, batch_size] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 4}, {2, 2}, {4, 1}, {3, 5}}) {
      std::map<int32_t, int> targets;
      for (int64_t rank = 0; rank < world; ++rank) {
        LoaderOptions o = options(5, batch_size, Sampling::random);
        o.directory = own.path();
        o.split = "val";
        o.rank = rank;
        o.ranks = world;
        EvalLoader loader(o);
        for (int64_t b = 0; b < loader.batches(); ++b) {
          const Batch& batch = loader.batch(b);
          int64_t counted = 0;
          for (size_t i = 0; i < batch.targets.size(); ++i) {
            if (batch.targets[i] == kIgnoredTarget) {
              EXPECT_EQ(batch.inputs[i], 0);
              continue;
            }
            EXPECT_EQ(batch.targets[i], batch.inputs[i] + 1);
            ++targets[batch.targets[i]];
            ++counted;
          }
          EXPECT_EQ(batch.counted_targets, counted);
        }
      }
      EXPECT_EQ(static_cast<int64_t>(targets.size()), tokens - 1);
      for (const auto& [target, count] : targets) EXPECT_EQ(count, 1) << target;
    }
  }
}

TEST_F(LoaderTest, EvaluationGoesInOrderAndRefusesTooLittle) {
  write(13, "val");
  LoaderOptions o = options(4, 2, Sampling::random);
  o.split = "val";
  EvalLoader loader(o);
  ASSERT_EQ(loader.batches(), 2);
  EXPECT_EQ(loader.batch(1).inputs, (std::vector<int32_t>{8, 9, 10, 11, 0, 0, 0, 0}));
  EXPECT_EQ(loader.batch(1).targets, (std::vector<int32_t>{9, 10, 11, 12, -1, -1, -1, -1}));
  EXPECT_EQ(loader.batch(0).inputs, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_THROW(loader.batch(2), CheckError);
  write(1, "train");
  o.split = "train";
  expect_contains(user_error([&] { EvalLoader small(o); }), "holds 1 tokens for train");
}

}  // namespace
}  // namespace lathe
