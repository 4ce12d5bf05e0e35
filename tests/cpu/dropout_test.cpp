#include "kernels/cpu/dropout.h"

#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

const StepInputs kInputs{.seed = 0xfedcba9876543210ULL, .first_sequence = 3, .step = 12345};

TEST(Dropout, MasksFollowTheDefinition) {
  for (float p : {1e-7f, 0.1f, 0.5f, 0.999f}) {
    const Dropout dropout{p, 5, DropoutSite::attention_projection, &kInputs};
    const cpu::DropoutMask mask(dropout);
    // The last start crosses the counter's 32-bit boundary.
    for (uint64_t first : {0ULL, 1ULL, 2ULL, 3ULL, 77777ULL, (1ULL << 34) - 130}) {
      for (int64_t count : {1, 2, 3, 5, 63, 64, 65, 300}) {
        std::vector<float> scales(static_cast<size_t>(count) + 1, -1.0f);
        mask.scales(first, count, scales.data());
        for (int64_t i = 0; i < count; ++i)
          ASSERT_EQ(scales[static_cast<size_t>(i)],
                    is_kept(dropout, first + static_cast<uint64_t>(i)) ? 1 / (1 - p) : 0.0f);
        ASSERT_EQ(scales.back(), -1.0f);
      }
    }
  }
}

TEST(Dropout, DropsTheShareThatItShould) {
  constexpr int64_t kCount = 1 << 20;
  std::vector<double> scales(kCount);
  for (float p : {0.01f, 0.1f, 0.5f, 0.9f}) {
    cpu::DropoutMask({p, 0, DropoutSite::embedding, &kInputs}).scales(8, kCount, scales.data());
    double sum = 0;
    for (double s : scales) sum += s;
    // The mean of the multipliers is 1; its deviation sqrt(p / (1-p) / n).
    EXPECT_NEAR(sum / kCount, 1, 4 * std::sqrt(p / (1 - p) / kCount)) << p;
  }
}

TEST(Dropout, SitesLayersStepsAndSeedsDiffer) {
  StepInputs later = kInputs, other = kInputs;
  later.step += 1;
  other.seed += 1;
  const Dropout all[] = {{0.5f, 0, DropoutSite::embedding, &kInputs},
                         {0.5f, 0, DropoutSite::mlp_projection, &kInputs},
                         {0.5f, 1, DropoutSite::embedding, &kInputs},
                         {0.5f, 0, DropoutSite::embedding, &later},
                         {0.5f, 0, DropoutSite::embedding, &other}};
  std::vector<std::vector<float>> masks;
  for (const Dropout& dropout : all) {
    masks.emplace_back(4096);
    cpu::DropoutMask(dropout).scales(0, 4096, masks.back().data());
  }
  for (size_t a = 0; a < masks.size(); ++a) {
    for (size_t b = 0; b < a; ++b) {
      int same = 0;
      for (size_t i = 0; i < 4096; ++i) same += masks[a][i] == masks[b][i];
      EXPECT_NEAR(same, 2048, 4 * 32) << a << " and " << b;
    }
  }
}

TEST(Dropout, OffReadsNothing) {
  EXPECT_FALSE(cpu::DropoutMask({0, 0, DropoutSite::embedding, nullptr}));
  EXPECT_THROW(cpu::DropoutMask({1, 0, DropoutSite::embedding, &kInputs}), CheckError);
  EXPECT_THROW(cpu::DropoutMask({0.5f, 0, DropoutSite::embedding, nullptr}), CheckError);
}

}  // namespace
}  // namespace lathe::testing
