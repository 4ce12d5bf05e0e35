#include "tests/ops/ops_testing.h"
#include "tests/tensor_cores.h"

namespace lathe::testing {
namespace {

struct Sizes {
  int64_t N, C, V, padded;
};
const Sizes kSizes[] = {{1, 1, 2, 2}, {2, 3, 2, 8}, {17, 33, 65, 128}, {130, 40, 97, 97}};
const Sizes kFew[] = {{5, 7, 11, 13}, {3, 16, 65, 128}};

template <typename T>
struct Case {
  using A = Accumulator<T>;
  Sizes s;
  double magnitude;
  double scale = 1.0 / 37;
  Buffer<T> x{{s.N, s.C}, random_values<T>(s.N* s.C, 1, magnitude)};
  Buffer<T> wte{{s.padded, s.C}, random_values<T>(s.padded* s.C, 2)};
  Buffer<int32_t> targets{{s.N}, random_tokens(s.N, 3, s.V)};
  Buffer<A> losses{{s.N}}, dwte{{s.padded, s.C}};
  Buffer<T> dx{{s.N, s.C}};
  Visible<StepResults> results;

  explicit Case(const Sizes& sizes, double times = 1) : s(sizes), magnitude(times) {
    if (s.N > 2) targets.data()[1] = -1;
  }
  LinearCrossEntropy args(bool gradient, bool accumulate = false) {
    LinearCrossEntropy a;
    a.losses_n = losses.tensor, a.x_nc = x.tensor, a.wte_vc = wte.tensor;
    a.targets_n = targets.tensor, a.vocab_size = s.V, a.scale = scale, a.results = results.get();
    a.accumulate = accumulate;
    if (gradient) a.dx_nc = dx.tensor, a.dwte_vc = dwte.tensor;
    return a;
  }
  void run_it(bool gradient, bool accumulate = false) {
    results->loss = 0;
    run(ops<T>(), args(gradient, accumulate));
  }
};

TEST(LinearCrossEntropy, GradientsByFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Case<double> c(s);
    c.run_it(true);
    const auto loss = [&] {
      c.run_it(false);
      return c.results->loss;
    };
    expect_gradient(c.x, c.dx.values(), loss, "x");
    expect_gradient(c.wte, c.dwte.values(), loss, "wte", 60);
  }
}

TEST(LinearCrossEntropy, LeavesPaddingAndIgnoredTargetsAlone) {
  for (const Sizes& s : kSizes) {
    Case<float> c(s);
    c.run_it(true);
    for (int64_t i = s.V * s.C; i < s.padded * s.C; ++i) ASSERT_EQ(c.dwte.data()[i], 0);
    if (s.N <= 2) continue;
    EXPECT_EQ(c.losses.data()[1], 0);
    for (int64_t i = 0; i < s.C; ++i) EXPECT_EQ(c.dx.data()[s.C + i], 0);
  }
}

template <typename T>
void adds() {
  using A = Accumulator<T>;
  Case<T> c(kSizes[2]);
  c.run_it(true);
  std::vector<A> twice = c.dwte.values();
  for (A& g : twice) g *= 2;
  const double loss = c.results->loss;
  run(ops<T>(), c.args(true, true));
  EXPECT_DOUBLE_EQ(c.results->loss, 2 * loss);
  expect_close<A>(c.dwte.values(), converted<double>(twice), twice, "dwte");
  double sum = 0;
  for (A l : c.losses.values()) sum += static_cast<double>(l);
  EXPECT_DOUBLE_EQ(loss, sum * c.scale);
}
TEST(LinearCrossEntropy, AddsToTheLossAndTheGradient) {
  adds<double>();
  adds<float>();
  adds<bf16>();
}

// As by separate operations: logits and their gradient are rounded to T.
template <typename T>
struct Plain {
  using A = Accumulator<T>;
  std::vector<A> losses, dwte, dx_sum;
  std::vector<PlainSum<A>> dwte_sum;
  std::vector<T> dx;

  explicit Plain(const Case<T>& c)
      : losses(static_cast<size_t>(c.s.N)),
        dx_sum(static_cast<size_t>(c.s.N * c.s.C)),
        dwte_sum(
            static_cast<size_t>(c.s.padded * c.s.C),
            PlainSum<A>(std::is_same_v<T, bf16> && device_under_test().kind() != DeviceKind::cpu)) {
    for (int64_t n = 0; n < c.s.N; ++n)
      if (c.targets.data()[n] >= 0) row(c, n);
    for (A sum : dx_sum) dx.push_back(static_cast<T>(sum));
    for (const PlainSum<A>& sum : dwte_sum) dwte.push_back(sum.value());
  }
  void row(const Case<T>& c, int64_t n) {
    const int64_t C = c.s.C;
    std::vector<T> logits(static_cast<size_t>(c.s.V));
    A top = -INFINITY, sum = 0;
    for (int64_t v = 0; v < c.s.V; ++v) {
      A logit = 0;
      for (int64_t i = 0; i < C; ++i)
        logit += static_cast<A>(c.x.data()[n * C + i]) * static_cast<A>(c.wte.data()[v * C + i]);
      logits[static_cast<size_t>(v)] = static_cast<T>(logit);
      top = std::max(top, static_cast<A>(logits[static_cast<size_t>(v)]));
    }
    for (T logit : logits) sum += std::exp(static_cast<A>(logit) - top);
    const int32_t target = c.targets.data()[n];
    losses[static_cast<size_t>(n)] =
        top + std::log(sum) - static_cast<A>(logits[static_cast<size_t>(target)]);
    for (int64_t v = 0; v < c.s.V; ++v) {
      const A p = std::exp(static_cast<A>(logits[static_cast<size_t>(v)]) - top) / sum;
      const A d = static_cast<A>(
          static_cast<T>((p - (v == target ? A(1) : A(0))) * static_cast<A>(c.scale)));
      for (int64_t i = 0; i < C; ++i) {
        dx_sum[static_cast<size_t>(n * C + i)] += d * static_cast<A>(c.wte.data()[v * C + i]);
        dwte_sum[static_cast<size_t>(v * C + i)].add(d * static_cast<A>(c.x.data()[n * C + i]));
      }
    }
  }
};

template <typename T>
void compare(const Sizes& s, double magnitude = 1, bool misaligned = false) {
  using A = Accumulator<T>;
  SCOPED_TRACE(fmt::format("N {} C {} V {} times {}", s.N, s.C, s.V, magnitude));
  Case<T> c(s, magnitude);
  if (misaligned) misalign(c.x, c.wte, c.targets, c.losses, c.dwte, c.dx);
  Case<double> r(s);
  const auto x = converted<double>(c.x.values()), wte = converted<double>(c.wte.values());
  std::copy(x.begin(), x.end(), r.x.data());
  std::copy(wte.begin(), wte.end(), r.wte.data());
  const Plain<T> plain(c);
  c.run_it(true);
  r.run_it(true);
  expect_close<A>(c.losses.values(), r.losses.values(), plain.losses, "losses");
  expect_close<T>(c.dx.values(), r.dx.values(), plain.dx, "dx");
  expect_close<A>(c.dwte.values(), r.dwte.values(), plain.dwte, "dwte");
  const std::vector<A> losses = c.losses.values();
  const double loss = c.results->loss;
  c.run_it(false);
  expect_same_bits(losses, c.losses.values(), "losses without gradient");
  EXPECT_EQ(loss, c.results->loss);
}
TEST(LinearCrossEntropy, ObeysTheToleranceRule) {
  for (const Sizes& s : kSizes) {
    compare<float>(s);
    compare<bf16>(s);
  }
  const Sizes tall{2048, 3, 11, 16}, wide{9, 5, 1030, 1037};
  compare<float>(tall), compare<bf16>(tall);
  compare<float>(wide), compare<bf16>(wide);
}
// From logits that are all equal to logits dominated by one.
TEST(LinearCrossEntropy, ObeysTheToleranceRuleAtAnyMagnitude) {
  for (const Sizes& s : kFew) {
    for (double magnitude : {1e-20, 1e-3, 30.0, 1e4}) {
      compare<float>(s, magnitude);
      compare<bf16>(s, magnitude);
    }
  }
}
TEST(LinearCrossEntropy, ObeysTheToleranceRuleWhereNothingIsAligned) {
  for (const Sizes& s : kFew) {
    compare<float>(s, 1, true);
    compare<bf16>(s, 1, true);
  }
}
// More rows than fit into one chunk of logits.
TEST(LinearCrossEntropy, ObeysTheToleranceRuleOverChunks) {
  compare<float>({200, 4, 50257, 50304});
  compare<bf16>({200, 4, 50257, 50304});
}

// Logits as far apart as float allows: no overflow, and the loss is their distance.
TEST(LinearCrossEntropy, LargeLogits) {
  Case<float> c({2, 1, 3, 3});
  const float x[] = {1e4f, 1e4f}, wte[] = {1e4f, -1e4f, 0};
  std::copy_n(x, 2, c.x.data());
  std::copy_n(wte, 3, c.wte.data());
  c.targets.data()[0] = 0, c.targets.data()[1] = 1;
  c.run_it(true);
  EXPECT_EQ(c.losses.data()[0], 0);
  EXPECT_EQ(c.losses.data()[1], 2e8f);
  for (float d : c.dx.values()) EXPECT_TRUE(std::isfinite(d));
}

TEST(LinearCrossEntropy, NaNReachesTheLoss) {
  Case<float> c(kSizes[2]);
  c.x.data()[2 * c.s.C] = NAN;
  c.run_it(true);
  EXPECT_TRUE(std::isnan(c.results->loss));
}

TEST(LinearCrossEntropy, RefusesTargetsOutsideTheVocabulary) {
  Case<float> c(kSizes[2]);
  c.targets.data()[0] = 65;
  if (looks_at_values()) {
    EXPECT_THROW(c.run_it(true), CheckError);
    return;
  }
  c.run_it(true);
  EXPECT_TRUE(std::isnan(c.losses.data()[0]));
  EXPECT_TRUE(std::isnan(c.results->loss));
}

template <typename T>
void compare_logits(int64_t rows, int64_t C, double magnitude = 1, bool misaligned = false) {
  using A = Accumulator<T>;
  constexpr int64_t kVocabulary = 197, kPadded = 256;
  SCOPED_TRACE(fmt::format("{} x {} times {}", rows, C, magnitude));
  Buffer<T> x({rows, C}, random_values<T>(rows * C, 1, magnitude));
  Buffer<T> wte({kPadded, C}, random_values<T>(kPadded * C, 2));
  Buffer<A> out({rows, kVocabulary});
  if (misaligned) misalign(x, wte, out);
  run(ops<T>(), Logits{out.tensor, x.tensor, wte.tensor, kVocabulary});
  std::vector<A> plain;
  std::vector<double> reference;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t v = 0; v < kVocabulary; ++v) {
      A sum = 0;
      long double exact = 0;
      for (int64_t i = 0; i < C; ++i) {
        const A a = static_cast<A>(x.data()[n * C + i]), b = static_cast<A>(wte.data()[v * C + i]);
        sum += a * b;
        exact += static_cast<long double>(a) * static_cast<long double>(b);
      }
      plain.push_back(sum);
      reference.push_back(static_cast<double>(exact));
    }
  }
  expect_close<A>(out.values(), reference, plain, "logits");
}
template <typename T>
void compare_logits() {
  for (int64_t rows : {1, 3, 20})
    for (int64_t C : {1, 70, 264}) compare_logits<T>(rows, C);
  for (double magnitude : {1e-30, 1e-10, 1e10, 1e30}) compare_logits<T>(3, 72, magnitude);
  for (int64_t rows : {1, 5}) compare_logits<T>(rows, 72, 1, true);
}
TEST(Logits, ObeyTheToleranceRule) {
  compare_logits<float>();
  compare_logits<bf16>();
  compare_logits<double>();
}

}  // namespace
}  // namespace lathe::testing
