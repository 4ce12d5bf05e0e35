#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

constexpr Gelu kBoth[] = {Gelu::exact, Gelu::tanh};

TEST(Gelu, GradientByFiniteDifferences) {
  for (Gelu gelu : kBoth) {
    const Shape shape{3, 67};
    Buffer<double> x(shape, random_values<double>(201, 1, 6)), y(shape), dx(shape);
    Buffer<double> dy(shape, random_values<double>(201, 2));
    run(ops<double>(), GeluBackward{dx.tensor, {}, dy.tensor, x.tensor, gelu});
    const auto loss = [&] {
      run(ops<double>(), GeluForward{y.tensor, x.tensor, gelu});
      return dot(y.values(), dy.values());
    };
    expect_gradient(x, dx.values(), loss, "dx", 201);
  }
}

// By the standard library, in the accumulator type.
template <typename A>
A plain_gelu(A x, Gelu gelu) {
  if (gelu == Gelu::exact) return x * A(0.5) * (1 + std::erf(x / std::sqrt(A(2))));
  const A u = std::sqrt(A(2) / static_cast<A>(3.14159265358979323846L)) *
              (x + static_cast<A>(0.044715L) * x * x * x);
  return A(0.5) * x * (1 + std::tanh(u));
}
template <typename A>
A plain_gelu_gradient(A x, Gelu gelu) {
  if (gelu == Gelu::exact)
    return A(0.5) * (1 + std::erf(x / std::sqrt(A(2)))) +
           x * std::exp(-x * x / 2) / std::sqrt(static_cast<A>(2 * 3.14159265358979323846L));
  const A c = std::sqrt(A(2) / static_cast<A>(3.14159265358979323846L)),
          t = std::tanh(c * (x + static_cast<A>(0.044715L) * x * x * x));
  return A(0.5) * (1 + t) +
         A(0.5) * x * (1 - t * t) * c * (1 + 3 * static_cast<A>(0.044715L) * x * x);
}

template <typename T>
void compare(int64_t count, double magnitude, bool misaligned = false) {
  using A = Accumulator<T>;
  for (Gelu gelu : kBoth) {
    SCOPED_TRACE(fmt::format("{} times {}", count, magnitude));
    const Shape shape{count};
    Buffer<T> x(shape, random_values<T>(count, 1, magnitude));
    Buffer<T> dy(shape, random_values<T>(count, 2)), y(shape), dx(shape);
    if (misaligned) misalign(x, dy, y, dx);
    run(ops<T>(), GeluForward{y.tensor, x.tensor, gelu});
    run(ops<T>(), GeluBackward{dx.tensor, {}, dy.tensor, x.tensor, gelu});
    std::vector<double> y_reference, dx_reference;
    std::vector<T> y_plain, dx_plain;
    for (int64_t i = 0; i < count; ++i) {
      const A value = static_cast<A>(x.data()[i]), d = static_cast<A>(dy.data()[i]);
      const long double exact = static_cast<long double>(value);
      y_reference.push_back(static_cast<double>(plain_gelu(exact, gelu)));
      dx_reference.push_back(
          static_cast<double>(static_cast<long double>(d) * plain_gelu_gradient(exact, gelu)));
      y_plain.push_back(static_cast<T>(plain_gelu(value, gelu)));
      dx_plain.push_back(static_cast<T>(d * plain_gelu_gradient(value, gelu)));
    }
    expect_close<T>(y.values(), y_reference, y_plain, "y");
    expect_close<T>(dx.values(), dx_reference, dx_plain, "dx");
    run(ops<T>(), GeluBackward{dy.tensor, {}, dy.tensor, x.tensor, gelu});
    expect_same_bits(dy.values(), dx.values(), "in place");
  }
}
TEST(Gelu, ObeysTheToleranceRule) {
  compare<double>(70001, 9);
  compare<float>(70001, 9);
  compare<bf16>(70001, 9);
}
TEST(Gelu, ObeysTheToleranceRuleAtAnySizeAndMagnitude) {
  for (int64_t count : {1, 7, 8, 2048}) compare<float>(count, 3), compare<bf16>(count, 3);
  for (double magnitude : {1e-30, 1e-4, 0.3, 40.0})
    compare<float>(2057, magnitude), compare<bf16>(2057, magnitude);
}
TEST(Gelu, ObeysTheToleranceRuleWhereNothingIsAligned) {
  compare<float>(2057, 9, true);
  compare<bf16>(2057, 9, true);
}

template <typename T>
struct Summed {
  using A = Accumulator<T>;
  int64_t rows, columns;
  Shape shape{rows, columns};
  Buffer<T> x{shape, random_values<T>(rows* columns, 1, 3)};
  Buffer<T> dy{shape, random_values<T>(rows*columns, 2)}, dx{shape};
  Buffer<A> sums{{columns}};

  Summed(int64_t rows, int64_t columns) : rows(rows), columns(columns) {}
  void backward(Gelu gelu, bool with_sums = true, bool accumulate = false) {
    const Tensor to = with_sums ? sums.tensor : Tensor{};
    run(ops<T>(), GeluBackward{dx.tensor, to, dy.tensor, x.tensor, gelu, accumulate});
  }
};
// Odd sizes, few and many rows, more columns than a block has.
template <typename T>
void sums_columns() {
  using A = Accumulator<T>;
  for (const auto& [rows, columns] : {std::pair{1, 1},
                                      {2, 8},
                                      {17, 24},
                                      {65, 33},
                                      {700, 40},
                                      {9, 520},
                                      {3, 1032},
                                      {2100, 8},
                                      {1, 2048}}) {
    for (const bool misaligned : {false, true}) {
      for (const Gelu gelu : kBoth) {
        SCOPED_TRACE(fmt::format("{} x {}", rows, columns));
        Summed<T> c(rows, columns);
        if (misaligned) misalign(c.x, c.dy, c.dx, c.sums);
        c.backward(gelu, false);
        const std::vector<T> dx = c.dx.values();
        c.backward(gelu);
        expect_same_bits(c.dx.values(), dx, "dx with and without sums");
        expect_column_sums<T>(c.sums.values(), dx, "sums");
        std::vector<A> twice = c.sums.values();
        for (A& sum : twice) sum *= 2;
        c.backward(gelu, true, true);
        expect_same_bits(c.sums.values(), twice, "accumulated");
      }
    }
  }
}
TEST(Gelu, SumsTheColumnsOfItsGradient) {
  sums_columns<double>();
  sums_columns<float>();
  sums_columns<bf16>();
}
TEST(Gelu, RefusesSumsOfAnotherWidth) {
  Summed<float> c(3, 8);
  c.sums.tensor.shape = {4};
  EXPECT_THROW(c.backward(Gelu::tanh), CheckError);
}

// Far from zero GELU is x or 0, and its slope 1 or 0, however far.
template <typename T>
void reaches_its_limits() {
  using A = Accumulator<T>;
  const std::vector<A> far{A(20), A(50), A(1e10f), A(3e38f), A(INFINITY)};
  const Shape shape{static_cast<int64_t>(2 * far.size() + 1)};
  Buffer<T> x(shape), y(shape), dx(shape), dy(shape, random_values<T>(shape.elements(), 2));
  for (size_t i = 0; i < far.size(); ++i) {
    x.data()[2 * i] = static_cast<T>(far[i]);
    x.data()[2 * i + 1] = static_cast<T>(-far[i]);
  }
  x.data()[2 * far.size()] = static_cast<T>(A(NAN));
  for (Gelu gelu : kBoth) {
    run(ops<T>(), GeluForward{y.tensor, x.tensor, gelu});
    run(ops<T>(), GeluBackward{dx.tensor, {}, dy.tensor, x.tensor, gelu});
    for (size_t i = 0; i < far.size(); ++i) {
      EXPECT_EQ(static_cast<A>(y.data()[2 * i]), static_cast<A>(x.data()[2 * i])) << far[i];
      EXPECT_EQ(static_cast<A>(dx.data()[2 * i]), static_cast<A>(dy.data()[2 * i])) << far[i];
      EXPECT_NEAR(static_cast<double>(y.data()[2 * i + 1]), 0, 1e-30) << far[i];
      EXPECT_NEAR(static_cast<double>(dx.data()[2 * i + 1]), 0, 1e-30) << far[i];
    }
    EXPECT_TRUE(std::isnan(static_cast<A>(y.data()[2 * far.size()])));
    EXPECT_TRUE(std::isnan(static_cast<A>(dx.data()[2 * far.size()])));
  }
}
TEST(Gelu, ReachesItsLimits) {
  reaches_its_limits<float>();
  reaches_its_limits<bf16>();
}

}  // namespace
}  // namespace lathe::testing
