// Dropout as operations apply it: an embedding of ones reveals its mask.
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

// The factors of mask elements first .. first + count, drawn in rows of `channels`.
template <typename T>
std::vector<T> mask(const Dropout& shape, StepInputs inputs, uint64_t first, int64_t count,
                    int64_t channels) {
  const int64_t rows = count / channels;
  EXPECT_EQ(rows * channels, count);
  EXPECT_EQ(first % static_cast<uint64_t>(channels), 0u);
  inputs.first_sequence = first / static_cast<uint64_t>(channels);  // sequences of one token
  const Visible<StepInputs> visible(inputs);
  Buffer<T> wte({1, channels}, std::vector<T>(static_cast<size_t>(channels), T(1.0f)));
  Buffer<T> wpe({1, channels}, std::vector<T>(static_cast<size_t>(channels), T(0.0f)));
  Buffer<int32_t> tokens({rows, 1}, std::vector<int32_t>(static_cast<size_t>(rows)));
  Buffer<T> x({rows, 1, channels});
  Dropout dropout = shape;
  dropout.inputs = visible.get();
  run(ops<T>(), EmbeddingForward{x.tensor, tokens.tensor, wte.tensor, wpe.tensor, dropout, 0});
  return x.values();
}

constexpr StepInputs kInputs{.seed = 0xfedcba9876543210ULL, .step = 12345};

template <typename T>
void compare() {
  for (float p : {1e-7f, 0.1f, 0.5f, 0.999f}) {
    const Dropout dropout{p, 5, DropoutSite::attention_projection, &kInputs};
    const T kept = static_cast<T>(1 / (1 - p));
    for (int64_t channels : {1, 3, 16}) {
      const uint64_t c = static_cast<uint64_t>(channels);
      // The last start crosses the counter's 32-bit boundary.
      for (uint64_t start : {uint64_t{0}, uint64_t{77}, ((uint64_t{1} << 34) - 130) / c}) {
        const std::vector<T> drawn = mask<T>(dropout, kInputs, start * c, 240, channels);
        for (size_t i = 0; i < drawn.size(); ++i) {
          ASSERT_EQ(static_cast<float>(drawn[i]),
                    is_kept(dropout, start * c + i) ? static_cast<float>(kept) : 0.0f)
              << "p " << p << " channels " << channels << " start " << start << " element " << i;
        }
      }
    }
  }
}
TEST(Dropout, OperationsFollowTheDefinition) {
  compare<double>();
  compare<float>();
  compare<bf16>();
}

TEST(Dropout, OperationsRefuseWrongProbabilities) {
  EXPECT_THROW(mask<float>({1, 0, DropoutSite::embedding}, kInputs, 0, 4, 4), CheckError);
  EXPECT_THROW(mask<float>({-0.1f, 0, DropoutSite::embedding}, kInputs, 0, 4, 4), CheckError);
}

}  // namespace
}  // namespace lathe::testing
