#include "kernels/device/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace lathe::testing {
namespace {

ExactSum sum_of(std::initializer_list<double> terms) {
  ExactSum sum;
  for (const double term : terms) sum.add(term);
  return sum;
}

TEST(ExactSum, RoundsOnceToTheNearestDouble) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 100'000; ++round) {
    // 113 bits hold a sum of terms of 48 bits that differ by up to 2^40.
    __float128 exact = 0;
    ExactSum sum;
    const int exponent = static_cast<int>(random() % 500) - 290;
    for (uint64_t terms = random() % 20; terms-- > 0;) {
      const auto integer = static_cast<double>(random() >> 16);
      const double term = std::ldexp(integer, exponent - static_cast<int>(random() % 40));
      exact += term;
      sum.add(term);
    }
    if (exponent < -250) continue;  // the last bits of a term may be below the lowest digit
    EXPECT_EQ(sum.rounded(), static_cast<double>(exact)) << exponent;
  }
}

TEST(ExactSum, TiesGoToEvenUnlessAnythingIsBelow) {
  const double large = std::ldexp(1.0, 53);
  EXPECT_EQ(sum_of({large, 1}).rounded(), large);
  EXPECT_EQ(sum_of({large, 2, 1}).rounded(), large + 4);
  EXPECT_EQ(sum_of({large, 1, 1}).rounded(), large + 2);
  for (const int tiny : {-1, -30, -31, -32, -33, -64, -100, -250})
    EXPECT_EQ(sum_of({large, 1, std::ldexp(1.0, tiny)}).rounded(), large + 2) << tiny;
}

TEST(ExactSum, HoldsTheSquaresOfAllFloats) {
  const double smallest = std::numeric_limits<float>::denorm_min();
  const double largest = std::numeric_limits<float>::max();
  EXPECT_EQ(sum_of({smallest * smallest}).rounded(), smallest * smallest);
  EXPECT_EQ(sum_of({largest * largest}).rounded(), largest * largest);
  ExactSum sum = sum_of({largest * largest, smallest * smallest});
  EXPECT_EQ(sum.digits[0], 4);  // 2^-298
  EXPECT_EQ(sum.rounded(), largest * largest);
  EXPECT_EQ(sum_of({}).rounded(), 0);
}

TEST(ExactSum, AddsParts) {
  ExactSum whole, left, right;
  for (int i = 1; i < 1000; ++i) {
    const double term = std::ldexp(1.0 / i, i % 200 - 100);
    whole.add(term);
    (i % 3 == 0 ? left : right).add(term);
  }
  left.carry();
  left.add(right);
  left.carry();
  whole.carry();
  for (int i = 0; i < ExactSum::kDigits; ++i) EXPECT_EQ(left.digits[i], whole.digits[i]) << i;
  for (int i = 0; i + 1 < ExactSum::kDigits; ++i) {
    EXPECT_GE(whole.digits[i], 0);
    EXPECT_LE(whole.digits[i], int64_t{0xffffffff});
  }
}

TEST(ExactSum, DoesNotDependOnTheOrderOrOnWhoAddsWhat) {
  std::mt19937_64 random(2);
  std::vector<double> terms(500);
  ExactSum expected;
  for (double& term : terms) {
    const auto g =
        std::ldexp(static_cast<float>(random() >> 40), static_cast<int>(random() % 200) - 130);
    expected.add(term = static_cast<double>(g) * static_cast<double>(g));
  }
  expected.carry();
  for (int round = 0; round < 1000; ++round) {
    std::shuffle(terms.begin(), terms.end(), random);
    std::vector<ExactSum> ranks(1 + random() % 7);
    for (const double term : terms) ranks[random() % ranks.size()].add(term);
    ExactSum sum;
    for (ExactSum& rank : ranks) {
      if (random() % 2 == 0) rank.carry();
      sum.add(rank);
    }
    sum.carry();
    for (int i = 0; i < ExactSum::kDigits; ++i) ASSERT_EQ(sum.digits[i], expected.digits[i]) << i;
  }
}

TEST(ExactSum, TakesNegativeParts) {
  ExactSum sum;
  sum.add(int64_t{5}, 100);
  sum.add(int64_t{-1}, 3);  // less than any digit of the first
  sum.add(int64_t{1}, 3);
  sum.add(int64_t{-7}, -301);  // half units are rounded down
  sum.carry();
  EXPECT_EQ(sum.digits[0], 0xfffffffc);
  sum.add(int64_t{4}, -300);
  EXPECT_EQ(sum.rounded(), std::ldexp(5.0, 100));
}

TEST(ExactSum, CountsWhatIsNotFinite) {
  for (const double bad : {std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN(), std::ldexp(1.0, 300)}) {
    ExactSum sum = sum_of({1, bad, 2});
    EXPECT_EQ(sum.not_finite, 1);
    EXPECT_TRUE(std::isnan(sum.rounded()));
  }
}

}  // namespace
}  // namespace lathe::testing
