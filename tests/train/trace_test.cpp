// The intervals that TracingOps records for operations and parts, on a device that computes
// nothing.
#include "src/train/trace.h"

#include <gtest/gtest.h>

namespace lathe::testing {
namespace {

// A table of operations with a given number of parts each.
class SplitOps final : public ObservedOps {
 public:
  explicit SplitOps(const Ops& real) : ObservedOps(real) {}
  PartObserver* observer = nullptr;
  int parts = 0;

 protected:
  bool before(const Call&) const override {
    for (int i = 0; i < parts; ++i) observer->part("part", {i}, {1, 2});
    return false;
  }
};

struct Traced {
  std::unique_ptr<Device> device = make_cpu_device();
  SplitOps split{device->ops(DType::fp32)};
  TracingOps tracing{split, *device};

  Traced() {
    device->take_marks(7);  // for another user of the device
    split.observer = &tracing;
  }
  void call(int parts) {
    split.parts = parts;
    float x = 0, y = 0;
    tracing.run(Cast{.destination = {&y, DType::fp32, {1}}, .source = {&x, DType::fp32, {1}}}, {});
  }
};

TEST(TracingOps, PartsFillTheirOperationAndShareTheirMarks) {
  Traced t;
  t.tracing.enter_layer(3);
  t.call(3);
  t.tracing.enter_layer(kNoLayer);
  t.call(0);
  const auto& s = t.tracing.intervals();
  ASSERT_EQ(s.size(), 5u);
  const auto expect = [&](size_t i, bool part, int from, int to, int64_t layer) {
    EXPECT_EQ(s[i].part, part) << i;
    EXPECT_EQ(s[i].from, from) << i;
    EXPECT_EQ(s[i].to, to) << i;
    EXPECT_EQ(s[i].layer, layer) << i;
  };
  expect(0, false, 7, 10, 3);
  expect(1, true, 7, 8, 3);
  expect(2, true, 8, 9, 3);
  expect(3, true, 9, 10, 3);
  expect(4, false, 11, 12, kNoLayer);
  EXPECT_EQ(s[0].name, "cast");
  EXPECT_EQ(s[0].cost.bytes, 8);
  EXPECT_EQ(s[2].sizes, Shape{1});
  for (const auto& interval : s)
    EXPECT_GE(t.device->milliseconds_between(interval.from, interval.to), 0);
}

TEST(TracingOps, OnePartIsTheWhole) {
  Traced t;
  t.call(1);
  ASSERT_EQ(t.tracing.intervals().size(), 1u);
  EXPECT_FALSE(t.tracing.intervals()[0].part);
  EXPECT_EQ(t.tracing.intervals()[0].to, 8);
}

TEST(TracingOps, StartsAnewWithEachStep) {
  Traced t;
  t.call(2);
  t.tracing.clear();
  t.call(2);
  ASSERT_EQ(t.tracing.intervals().size(), 3u);
  EXPECT_EQ(t.tracing.intervals()[0].from, 7);
}

// An operation is split completely or not at all.
TEST(TracingOps, SplitsNoMoreThanItMay) {
  Traced t;
  constexpr int kParts = 300;
  for (int i = 0; i < 10; ++i) t.call(kParts);
  size_t parts = 0;
  for (const auto& interval : t.tracing.intervals()) parts += interval.part;
  EXPECT_EQ(parts, 7u * kParts);  // the seventh begins before there are kMostParts
  EXPECT_GE(parts, TracingOps::kMostParts);
  EXPECT_FALSE(t.tracing.intervals().back().part);
  EXPECT_EQ(t.tracing.intervals().size(), parts + 10);
}

}  // namespace
}  // namespace lathe::testing
