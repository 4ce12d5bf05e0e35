#include "tests/ops/one_step.h"

namespace lathe::testing {
namespace {

template <typename T>
std::vector<unsigned char> two_steps() {
  OneStep<T> step;
  for (int i = 0; i < 2; ++i) {
    step.run_own();
    step.run_products();
  }
  return step.bytes();
}
TEST(Determinism, TheSameStepsGiveTheSameBits) {
  expect_same_bits(two_steps<float>(), two_steps<float>(), "fp32");
  expect_same_bits(two_steps<bf16>(), two_steps<bf16>(), "bf16");
}

}  // namespace
}  // namespace lathe::testing
