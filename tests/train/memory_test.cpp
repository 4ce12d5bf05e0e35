// Compares the memory that a run used, as the system reports it, with the plan.
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

// Bytes that oneDNN 2 allocates while it multiplies in fp32 on CPUs without AVX-512: each of the
// tests' two threads packs its operands. The plan does not include them.
double packed_operands() {
  constexpr double kMostOfThread = 16 << 20;
  return __builtin_cpu_supports("avx512f") ? 0 : 2 * kMostOfThread;
}

class Memory : public TrainTest {};

TEST_F(Memory, PeakIsWithinFivePercentOfThePlan) {
  const Flags small = with(tiny(""), {{"benchmark", ""}, {"steps", "3"}, {"device", "cpu"}});
  Flags common = small;
  common.erase("out");
  for (const char* dtype : {"fp32", "bf16"}) {
    common["dtype"] = dtype;
    const ProcessResult base = run(train_command(common));  // the program itself
    const ProcessResult mid = run(train_command(with(common, {{"n-layer", "2"},
                                                              {"n-head", "16"},
                                                              {"n-embd", "512"},
                                                              {"vocab-size", "8192"},
                                                              {"seq-len", "64"},
                                                              {"batch-size", "8"}})));
    expect_success(base);
    expect_success(mid);
    const double plan = planned_bytes(mid.out) - planned_bytes(base.out);
    const double peak = 1024.0 * static_cast<double>(mid.peak_rss - base.peak_rss);
    EXPECT_GT(plan, 150e6);
    EXPECT_GE(peak, 0.95 * plan) << dtype;
    EXPECT_LE(peak, 1.05 * plan + packed_operands()) << dtype << ", planned " << plan;
  }
}

}  // namespace
}  // namespace lathe::testing
