#include "kernels/device/device.h"

#include <array>
#include <chrono>
#include <thread>

#include "kernels/device/arena.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

TEST(CpuDevice, MemoryIsZeroedAlignedAndCopied) {
  void* memory = cpu().allocate(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % kArenaAlignment, 0u);
  const Tensor tensor{memory, DType::fp32, {250}};
  std::vector<float> values(250, 1), expected(250, 0);
  cpu().download(values.data(), tensor);
  EXPECT_EQ(values, expected);
  expected = random_values<float>(250, 1);
  cpu().upload(tensor, expected.data());
  cpu().download(values.data(), tensor);
  EXPECT_EQ(values, expected);
  cpu().zero(tensor);
  cpu().download(values.data(), tensor);
  EXPECT_EQ(values, std::vector<float>(250, 0));
  cpu().release(memory, 1000);
}

TEST(CpuDevice, ResultsAreThoseOfTheMomentWhenTheyWereAskedFor) {
  void* memory = cpu().allocate(64);
  const Tensor tensor{memory, DType::int64, {2}};
  const std::array<int64_t, 2> first = {1, 2}, second = {3, 4};
  cpu().upload(tensor, first.data());
  cpu().read_back(0, tensor);
  cpu().upload(tensor, second.data());
  cpu().read_back(1, tensor);
  cpu().zero(tensor);
  std::array<int64_t, 2> seen{};
  cpu().collect(0, seen.data());
  EXPECT_EQ(seen, first);
  cpu().collect(1, seen.data());
  EXPECT_EQ(seen, second);
  cpu().release(memory, 64);
}

TEST(CpuDevice, MarksTellTheTimeBetweenThem) {
  cpu().mark(3);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  cpu().mark(0);
  EXPECT_GE(cpu().milliseconds_between(3, 0), 5);
  EXPECT_EQ(cpu().milliseconds_between(3, 3), 0);
  EXPECT_FALSE(cpu().asynchronous());
  int calls = 0;
  for (int i = 0; i < 3; ++i) cpu().replay(7, [&] { ++calls; });
  EXPECT_EQ(calls, 3);
}

TEST(CpuDevice, RefusesMoreMemoryThanThereIs) {
  EXPECT_THROW(cpu().allocate(size_t{1} << 50), UserError);
}

TEST(CpuDevice, ArenaHandsOutItsPlan) {
  MemoryPlan plan;
  plan.add(MemoryCategory::weights, DType::bf16, 1001);
  plan.add(MemoryCategory::workspace, DType::uint8, 77);
  Arena arena(cpu(), plan.total());
  const Tensor a = arena.allocate(MemoryCategory::weights, DType::bf16, {7, 143});
  const Tensor b = arena.allocate(MemoryCategory::workspace, DType::uint8, {77});
  EXPECT_EQ(arena.used(), plan);
  for (const Tensor& t : {a, b}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % kArenaAlignment, 0u);
    for (size_t i = 0; i < t.bytes(); ++i) EXPECT_EQ(static_cast<char*>(t.data)[i], 0);
  }
  EXPECT_THROW(arena.allocate(MemoryCategory::batch, DType::int32, {1}), CheckError);
}

TEST(CpuDevice, HasTablesForTheFloatingTypes) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp64}) {
    EXPECT_EQ(cpu().ops(dtype).dtype(), dtype);
    EXPECT_EQ(&cpu().ops(dtype), &cpu().ops(dtype));
  }
  EXPECT_THROW(cpu().ops(DType::int32), CheckError);
  EXPECT_FALSE(cpu().name().empty());
}

TEST(Costs, CountTheWorkThatTheModelAsksFor) {
  // N C tokens-times-channels through one linear: 2 FLOPs per weight and token, twice that
  // backward.
  float some = 0;
  const auto tensor = [&](Shape shape) { return Tensor{&some, DType::fp32, shape}; };
  LinearForward forward;
  forward.y_no = tensor({10, 30}), forward.x_ni = tensor({10, 20});
  forward.weight_io = tensor({20, 30});
  EXPECT_EQ(forward.cost().flops, 2.0 * 10 * 20 * 30);
  EXPECT_EQ(forward.cost().bytes, 4.0 * (10 * 30 + 10 * 20 + 20 * 30));
  LinearBackward backward;
  backward.x_ni = backward.dx_ni = tensor({10, 20}), backward.dy_no = tensor({10, 30});
  backward.weight_io = backward.dweight_io = tensor({20, 30});
  EXPECT_EQ(backward.cost().flops, 4.0 * 10 * 20 * 30);
  const double bytes = backward.cost().bytes;
  backward.dx_sums_i = tensor({20});
  EXPECT_EQ(backward.cost().bytes, bytes + 4.0 * 20);
  backward.accumulate = true;  // also reads dweight and the sums
  EXPECT_EQ(backward.cost().bytes, bytes + 4.0 * (2 * 20 + 20 * 30));
  // The causal half of attention: 2 C T per token forward, 6 C T in all.
  AttentionForward attention;
  attention.out_btc = tensor({2, 8, 6}), attention.qkv_bt3c = tensor({2, 8, 18});
  attention.logsumexp_bht = tensor({2, 3, 8});
  AttentionBackward attention_back;
  attention_back.out_btc = attention_back.dout_btc = tensor({2, 8, 6});
  attention_back.qkv_bt3c = attention_back.dqkv_bt3c = tensor({2, 8, 18});
  EXPECT_EQ(attention.cost().flops + attention_back.cost().flops, 6.0 * 6 * 8 * 16);
  const double without_sums = attention_back.cost().bytes;
  attention_back.dqkv_sums_3c = tensor({18});
  EXPECT_EQ(attention_back.cost().bytes, without_sums + 4.0 * 18);
}

}  // namespace
}  // namespace lathe::testing
