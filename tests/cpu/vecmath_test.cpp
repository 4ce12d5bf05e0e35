#include "kernels/cpu/vecmath.h"

#include <gtest/gtest.h>

#include <bit>
#include <functional>
#include <limits>
#include <vector>

#include "tests/tolerance.h"

namespace lathe::cpu {
namespace {

// A vectorised loop, as in the kernels.
template <typename Function>
[[gnu::noinline]] void apply(Function f, const std::vector<float>& x, std::vector<float>& y) {
#pragma omp simd
  for (size_t i = 0; i < x.size(); ++i) y[i] = f(x[i]);
}

constexpr uint64_t kStep = 1021;  // a prime, so that the low bits of the samples differ

// Largest error over one in 1021 of all floats, in the unit that `unit` gives for (x, exact).
template <typename Function>
double worst_error(Function f, const std::function<double(double)>& exact,
                   const std::function<double(double, double)>& unit) {
  std::vector<float> x, y;
  for (uint64_t u = 0; u < (1ull << 32); u += kStep)
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(u)));
  y.resize(x.size());
  apply(f, x, y);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double r = exact(x[i]);
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(y[i])) << x[i];
    } else if (std::isinf(static_cast<float>(r))) {
      EXPECT_EQ(y[i], static_cast<float>(r)) << x[i];
    } else {
      worst = std::max(worst, std::fabs(y[i] - r) / unit(x[i], r));
    }
  }
  return worst;
}

double ulp(double, double exact) {
  return std::max(testing::ulp_at<float>(static_cast<float>(exact)), 0x1p-149);
}
double above_one(double x, double) {
  return std::max(1.0, std::fabs(x));
}

TEST(VecMath, ExpTanhErfInUlp) {
  EXPECT_LE(
      worst_error([](float x) { return fast_exp(x); }, [](double x) { return std::exp(x); }, ulp),
      1.5);
  EXPECT_LE(
      worst_error([](float x) { return fast_tanh(x); }, [](double x) { return std::tanh(x); }, ulp),
      3);
  EXPECT_LE(
      worst_error([](float x) { return fast_erf(x); }, [](double x) { return std::erf(x); }, ulp),
      3.5);
}

TEST(VecMath, GeluAndItsGradient) {
  const auto tanh_form = [](double x) { return gelu_tanh(x); };
  const auto tanh_grad = [](double x) { return gelu_tanh_grad(x); };
  const auto exact_form = [](double x) { return gelu_exact(x); };
  const auto exact_grad = [](double x) { return gelu_exact_grad(x); };
  EXPECT_LE(worst_error([](float x) { return gelu_tanh(x); }, tanh_form, above_one), 1.3e-7);
  EXPECT_LE(worst_error([](float x) { return gelu_tanh_grad(x); }, tanh_grad, above_one), 3e-7);
  EXPECT_LE(worst_error([](float x) { return gelu_exact(x); }, exact_form, above_one), 1.3e-7);
  EXPECT_LE(worst_error([](float x) { return gelu_exact_grad(x); }, exact_grad, above_one), 3e-7);
}

// The double versions, the reference for the float ones, against the textbook formulas and central
// differences.
TEST(VecMath, DoubleFollowsTheFormulas) {
  for (double x = -12; x <= 12; x += 0.037) {
    const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    EXPECT_NEAR(gelu_tanh(x), 0.5 * x * (1 + std::tanh(u)), 1e-14 * (1 + std::fabs(x))) << x;
    EXPECT_NEAR(gelu_exact(x), 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))),
                1e-14 * (1 + std::fabs(x)));
    const double h = 1e-5;
    EXPECT_NEAR(gelu_tanh_grad(x), (gelu_tanh(x + h) - gelu_tanh(x - h)) / (2 * h), 1e-8) << x;
    EXPECT_NEAR(gelu_exact_grad(x), (gelu_exact(x + h) - gelu_exact(x - h)) / (2 * h), 1e-8) << x;
  }
}

template <typename T>
void check_limits() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  EXPECT_EQ(fast_exp(inf), inf);
  EXPECT_EQ(fast_exp(-inf), T(0));
  EXPECT_EQ(fast_tanh(inf), T(1));
  EXPECT_EQ(fast_tanh(-inf), T(-1));
  EXPECT_EQ(fast_erf(inf), T(1));
  EXPECT_EQ(fast_erf(-inf), T(-1));
  EXPECT_TRUE(std::signbit(fast_tanh(T(-0.0))) && std::signbit(fast_erf(T(-0.0))));
  for (auto f : {gelu_tanh<T>, gelu_exact<T>}) {
    EXPECT_EQ(f(inf), inf);
    EXPECT_NEAR(f(-inf), 0, 1e-30);
    EXPECT_TRUE(std::isnan(f(nan)));
  }
  for (auto f : {gelu_tanh_grad<T>, gelu_exact_grad<T>}) {
    EXPECT_EQ(f(inf), T(1));
    EXPECT_NEAR(f(-inf), 0, 1e-30);
    EXPECT_TRUE(std::isnan(f(nan)));
  }
}

TEST(VecMath, LimitsAndNotANumber) {
  check_limits<float>();
  check_limits<double>();
}

TEST(VecMath, StoreRoundsToNearestEven) {
  bf16 x;
  store(x, 1.0f + 0x1p-8f);
  EXPECT_EQ(float(x), 1.0f);
  store(x, 1.0f + 3 * 0x1p-8f);
  EXPECT_EQ(float(x), 1.0f + 0x1p-6f);
  store(x, NAN);
  EXPECT_TRUE(std::isnan(float(x)));
}

}  // namespace
}  // namespace lathe::cpu
