#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

constexpr Gelu kBoth[] = {Gelu::exact, Gelu::tanh};

TEST(Gelu, GradientByFiniteDifferences) {
  for (Gelu gelu : kBoth) {
    const Shape shape{3, 67};
    Buffer<double> x(shape, random_values<double>(201, 1, 6)), y(shape), dx(shape);
    Buffer<double> dy(shape, random_values<double>(201, 2));
    run(ops<double>(), GeluBackward{dx.tensor, dy.tensor, x.tensor, gelu});
    const auto loss = [&] {
      run(ops<double>(), GeluForward{y.tensor, x.tensor, gelu});
      return dot(y.values(), dy.values());
    };
    expect_gradient(x, dx.values(), loss, "dx", 201);
  }
}

// Written with the standard library, in the accumulator type.
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
void compare() {
  using A = Accumulator<T>;
  constexpr int64_t kCount = 70001;
  for (Gelu gelu : kBoth) {
    const Shape shape{kCount};
    Buffer<T> x(shape, random_values<T>(kCount, 1, 9)), dy(shape, random_values<T>(kCount, 2));
    Buffer<T> y(shape), dx(shape);
    run(ops<T>(), GeluForward{y.tensor, x.tensor, gelu});
    run(ops<T>(), GeluBackward{dx.tensor, dy.tensor, x.tensor, gelu});
    std::vector<double> y_reference, dx_reference;
    std::vector<T> y_plain, dx_plain;
    for (int64_t i = 0; i < kCount; ++i) {
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
    run(ops<T>(), GeluBackward{dy.tensor, dy.tensor, x.tensor, gelu});
    expect_same_bits(dy.values(), dx.values(), "in place");
  }
}
TEST(Gelu, ObeysTheToleranceRule) {
  compare<double>();
  compare<float>();
  compare<bf16>();
}

}  // namespace
}  // namespace lathe::testing
