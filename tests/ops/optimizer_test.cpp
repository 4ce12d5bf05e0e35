// AdamW, the global norm, and casts.
#include <bit>

#include "tests/ops/golden_adamw.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

template <typename T>
struct State {
  using A = Accumulator<T>;
  int64_t count;
  Buffer<A> masters, m, v, gradients;
  Buffer<T> weights;
  std::vector<OptimizerSegment> segments;
  Buffer<uint8_t> visible_segments{{4 * sizeof(OptimizerSegment)}};
  Visible<StepInputs> inputs;
  Visible<StepResults> results;
  bool stochastic_rounding = false;

  explicit State(int64_t elements)
      : count(elements),
        masters({count}, random_values<A>(count, 1)),
        m({count}, std::vector<A>(static_cast<size_t>(count))),
        v({count}, std::vector<A>(static_cast<size_t>(count))),
        gradients({count}, random_values<A>(count, 2)),
        weights({count}) {
    segments = {{0, count / 3, 0.1f}, {count / 3, count, 0}};
    inputs->learning_rate = 0.01f;
    results->clip_scale = 1;
  }
  void step() {
    AdamW a;
    a.masters = masters.tensor, a.m = m.tensor, a.v = v.tensor, a.gradients = gradients.tensor;
    if (!std::is_same_v<T, A>) a.weights = weights.tensor;
    const size_t bytes = segments.size() * sizeof(OptimizerSegment);
    ASSERT_LE(bytes, visible_segments.tensor.bytes());
    std::memcpy(visible_segments.data(), segments.data(), bytes);
    a.segments = reinterpret_cast<const OptimizerSegment*>(visible_segments.data());
    a.segment_count = static_cast<int64_t>(segments.size());
    a.inputs = inputs.get(), a.results = results.get();
    a.stochastic_rounding = stochastic_rounding;
    run(ops<T>(), a);
  }
};

// Computes the norm of a gradient as an optimizer does.
void measure(const Ops& table, const Tensor& gradients, double clip, StepResults* results) {
  results->squares = {};
  run(table, SquareSum{gradients, results});
  run(table, ClipScale{clip, results});
}

// The formula, element by element.
template <typename A>
void plain_step(std::vector<A>& w, std::vector<A>& m, std::vector<A>& v, const std::vector<A>& g,
                A lr, A clip, int t, size_t decayed) {
  const A b1 = A(0.9f), b2 = A(0.95f), eps = A(1e-8f);
  for (size_t i = 0; i < w.size(); ++i) {
    const A clipped = clip * g[i];
    m[i] = b1 * m[i] + (1 - b1) * clipped;
    v[i] = b2 * v[i] + (1 - b2) * clipped * clipped;
    const A m_hat = m[i] / (1 - std::pow(b1, A(t))), v_hat = v[i] / (1 - std::pow(b2, A(t)));
    w[i] -= lr * (m_hat / (std::sqrt(v_hat) + eps) + (i < decayed ? A(0.1f) : A(0)) * w[i]);
  }
}

template <typename T>
void compare_formula(int64_t count, double magnitude = 1) {
  using A = Accumulator<T>;
  SCOPED_TRACE(fmt::format("{} elements, gradients times {}", count, magnitude));
  State<T> s(count);
  s.results->clip_scale = 0.25;
  std::vector<A> w = s.masters.values(), m(w.size()), v(w.size());
  std::vector<double> wd = converted<double>(w), md(w.size()), vd(w.size());
  for (int t = 1; t <= 4; ++t) {
    const std::vector<A> g = random_values<A>(count, 10 + static_cast<uint64_t>(t), magnitude);
    std::copy(g.begin(), g.end(), s.gradients.data());
    const size_t decayed = static_cast<size_t>(count / 3);
    plain_step<A>(w, m, v, g, A(0.01f), A(0.25), t, decayed);
    plain_step<double>(wd, md, vd, converted<double>(g), 0.01f, 0.25, t, decayed);
    s.step();
  }
  EXPECT_EQ(s.results->updates, 4);
  expect_close<A>(s.masters.values(), wd, w, "masters");
  expect_close<A>(s.m.values(), md, m, "m");
  expect_close<A>(s.v.values(), vd, v, "v");
  if (!std::is_same_v<T, A>)
    expect_same_bits(s.weights.values(), converted<T>(s.masters.values()), "rounded weights");
}
TEST(AdamW, FollowsTheFormula) {
  for (int64_t count : {1, 2, 100, 50001}) {
    compare_formula<float>(count);
    compare_formula<bf16>(count);
    compare_formula<double>(count);
  }
}
// From gradients that are negligible beside epsilon to those whose squares just fit into fp32.
TEST(AdamW, FollowsTheFormulaAtAnyMagnitude) {
  for (double magnitude : {1e-15, 1e-8, 1e5, 1e18}) {
    compare_formula<float>(101, magnitude);
    compare_formula<bf16>(101, magnitude);
  }
}

template <typename T>
std::vector<T> golden_steps() {
  using namespace golden;
  State<T> s(kCount);
  s.segments = {{0, kDecayed, 0.1f}, {kDecayed, kCount, 0}};
  for (int i = 0; i < kCount; ++i) s.masters.data()[i] = static_cast<T>(kInitial[i]);
  for (int step = 0; step < kSteps; ++step) {
    s.inputs->learning_rate = static_cast<float>(kLearningRates[step]);
    for (int i = 0; i < kCount; ++i)
      s.gradients.data()[i] = static_cast<T>(kGradients[step * kCount + i]);
    s.step();
  }
  return s.masters.values();
}
TEST(AdamW, TenStepsAsInPyTorch) {
  const std::vector<double> reference(std::begin(golden::kFinal), std::end(golden::kFinal));
  const std::vector<double> ours = golden_steps<double>();
  expect_close<double>(ours, reference, reference, "float64");
  const std::vector<float> plain(std::begin(golden::kFinalFloat), std::end(golden::kFinalFloat));
  expect_close<float>(golden_steps<float>(), reference, plain, "float32");
}

TEST(AdamW, LeavesGapsAndPaddingAlone) {
  State<bf16> s(40000);
  s.segments = {{10, 20000, 0.1f}, {20100, 39990, 0.1f}};
  for (int64_t i = 30000; i < 31000; ++i) s.masters.data()[i] = s.gradients.data()[i] = 0;
  const auto before = s.masters.values();
  s.step();
  for (size_t i = 0; i < before.size(); ++i) {
    const bool gap = i < 10 || (i >= 20000 && i < 20100) || i >= 39990;
    const bool padding = i >= 30000 && i < 31000;
    ASSERT_EQ(s.masters.data()[i] == before[i], gap || padding) << i;
    if (gap || padding) {
      ASSERT_EQ(s.m.data()[i], 0) << i;
      ASSERT_EQ(s.v.data()[i], 0) << i;
    }
  }
}

template <typename T>
void skip_leaves_all(double poison_loss, double poison_gradient) {
  State<T> s(30000);
  s.step();
  const auto masters = s.masters.values(), m = s.m.values(), v = s.v.values();
  const auto weights = s.weights.values();
  s.results->loss = poison_loss;
  s.gradients.data()[12345] = static_cast<Accumulator<T>>(poison_gradient);
  measure(ops<T>(), s.gradients.tensor, 1, s.results.get());
  EXPECT_EQ(s.results->skip, 1);
  s.step();
  EXPECT_EQ(s.results->updates, 1);
  expect_same_bits(masters, s.masters.values(), "masters");
  expect_same_bits(m, s.m.values(), "m");
  expect_same_bits(v, s.v.values(), "v");
  expect_same_bits(weights, s.weights.values(), "weights");
  s.results->loss = 1;
  s.gradients.data()[12345] = 0;
  measure(ops<T>(), s.gradients.tensor, 1, s.results.get());
  EXPECT_EQ(s.results->skip, 0);
  s.step();
  EXPECT_EQ(s.results->updates, 2);
}
TEST(AdamW, SkipsWhatIsNotFinite) {
  for (double poison :
       {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
    skip_leaves_all<float>(poison, 1);
    skip_leaves_all<bf16>(1, poison);
    skip_leaves_all<double>(1, poison);
  }
}

// A stochastically rounded weight is one of the two neighbours of its master, drawn as the contract
// defines. Over many draws the mean is the master, which lies between them.
TEST(AdamW, RoundsStochasticallyWithoutBias) {
  constexpr int64_t kCount = 4096;
  constexpr int kUpdates = 64;
  State<bf16> s(kCount);
  s.stochastic_rounding = true;
  s.inputs->learning_rate = 0;  // masters stay, each update draws weights again
  s.inputs->seed = 0x123456789abcdef0;
  const std::vector<float> masters = s.masters.values();
  std::vector<double> sums(kCount);
  for (int t = 1; t <= kUpdates; ++t) {
    s.step();
    for (size_t i = 0; i < kCount; ++i) {
      const auto words =
          philox(s.inputs->seed, i / 4, kPhiloxSiteRounding, static_cast<uint32_t>(t));
      const uint32_t bits = std::bit_cast<uint32_t>(masters[i]);
      ASSERT_EQ(s.weights.data()[i].bits, (bits + (words[i % 4] >> 16)) >> 16) << i;
      sums[i] += static_cast<double>(s.weights.data()[i]);
    }
  }
  expect_same_bits(s.masters.values(), masters, "masters");
  double total = 0, deviations = 0;  // of the errors, in units of the rounding interval
  for (size_t i = 0; i < kCount; ++i) {
    const double ulp = ulp_at<bf16>(static_cast<double>(masters[i]));
    if (ulp == 0) continue;
    const double error = (sums[i] / kUpdates - static_cast<double>(masters[i])) / ulp;
    EXPECT_LT(std::fabs(error), 4.5 * 0.5 / std::sqrt(kUpdates)) << i;  // deviation 1/2 at most
    total += error, deviations += 1;
  }
  EXPECT_LT(std::fabs(total / deviations), 4 * 0.5 / std::sqrt(kUpdates * deviations));
}

TEST(AdamW, RoundsStochasticallyOnlyWhereAsked) {
  State<bf16> nearest(1000), random(1000);
  random.stochastic_rounding = true;
  nearest.step(), random.step();
  expect_same_bits(nearest.weights.values(), converted<bf16>(nearest.masters.values()), "nearest");
  expect_same_bits(nearest.masters.values(), random.masters.values(), "masters");
  int different = 0;
  for (size_t i = 0; i < 1000; ++i)
    different += nearest.weights.data()[i].bits != random.weights.data()[i].bits;
  EXPECT_NEAR(different, 250, 80);  // the mean distance to the nearest is a quarter
  State<float> fp32(8);
  fp32.stochastic_rounding = true;
  EXPECT_THROW(fp32.step(), CheckError);
}

// As in a resumed run: recomputes the weights from masters, seed and the number of updates.
TEST(Cast, RoundsAsAdamWDid) {
  State<bf16> s(9999);
  s.stochastic_rounding = true;
  for (int i = 0; i < 3; ++i) s.step();
  Buffer<bf16> again({9999});
  const Visible<StepInputs> rounding{{.seed = s.inputs->seed, .step = 3}};
  run(ops<bf16>(), Cast{again.tensor, s.masters.tensor, rounding.get()});
  expect_same_bits(again.values(), s.weights.values(), "weights");
  Buffer<float> wrong({9999});
  EXPECT_THROW(run(ops<bf16>(), Cast{wrong.tensor, s.masters.tensor, rounding.get()}), CheckError);
}

TEST(StochasticRounding, KeepsWhatIsExactAndWhatIsNotFinite) {
  for (uint32_t random : {0u, 0x8000u, 0xffffu}) {
    for (float x : {0.0f, -0.0f, 1.0f, -2.5f, INFINITY, -INFINITY})
      EXPECT_EQ(stochastic_bf16_bits(std::bit_cast<uint32_t>(x), random), bf16(x).bits) << x;
    for (uint32_t nan : {0x7f800001u, 0xffc00000u, 0x7fffffffu}) {
      const uint32_t bits = uint32_t{stochastic_bf16_bits(nan, random)} << 16;
      EXPECT_TRUE(std::isnan(std::bit_cast<float>(bits)));
    }
  }
}

TEST(AdamW, RefusesSegmentsThatOverlap) {
  if (!looks_at_values()) GTEST_SKIP() << "segments are in the device's memory";
  State<float> s(100);
  s.segments = {{0, 60, 0}, {50, 100, 0}};
  EXPECT_THROW(s.step(), CheckError);
  s.segments = {{0, 101, 0}};
  EXPECT_THROW(s.step(), CheckError);
}

// The sum of squares, added one by one in integers, rounded once.
double exact_norm(const Tensor& gradients) {
  ExactSum sum;
  for (int64_t i = 0; i < gradients.elements(); ++i) {
    const double g = static_cast<double>(gradients.as<float>()[i]);
    sum.add(g * g);
  }
  return std::sqrt(sum.rounded());
}

void compare_norm(int64_t count, double magnitude = 1, bool misaligned = false) {
  SCOPED_TRACE(fmt::format("{} elements times {}", count, magnitude));
  Buffer<float> gradients({count}, random_values<float>(count, 3, magnitude));
  if (misaligned) misalign(gradients);
  Visible<StepResults> results;
  long double squares = 0;
  for (float g : gradients.values())
    squares += static_cast<long double>(g) * static_cast<long double>(g);
  const double norm = static_cast<double>(std::sqrt(squares));
  for (double clip : {0.0, 0.5, 1e9}) {
    measure(ops<bf16>(), gradients.tensor, clip, results.get());
    EXPECT_NEAR(results->grad_norm, norm, 1e-15 * norm);  // of the long double
    EXPECT_EQ(results->grad_norm, exact_norm(gradients.tensor));
    EXPECT_EQ(results->clip_scale, clip > 0 ? std::min(1.0, clip / results->grad_norm) : 1.0);
    EXPECT_EQ(results->skip, 0);
  }
}
TEST(GlobalNorm, IsTheRootOfTheSquares) {
  for (int64_t count : {1, 5, 1024, 1025, 4096, 100003, 300007}) compare_norm(count);
  for (double magnitude : {1e-44, 1e-38, 1e-20, 1e20, 1e38}) compare_norm(4099, magnitude);
  compare_norm(4173, 1, true);
}

TEST(GlobalNorm, LargeGradientsDoNotOverflow) {
  Buffer<float> gradients({3}, {3e30f, 4e30f, 0});
  Visible<StepResults> results;
  measure(ops<float>(), gradients.tensor, 1, results.get());
  EXPECT_NEAR(results->grad_norm, 5e30, 1e24);
  EXPECT_EQ(results->skip, 0);
}

// Gradients that the fast paths were not made for: every magnitude that a float has, in every
// order, rows of zeros, one large element among many that are tiny, subnormal numbers.
TEST(GlobalNorm, IsExactForAnyGradients) {
  constexpr int64_t kCount = 70'001;
  const std::vector<float> mantissas = random_values<float>(kCount, 7);
  const auto all_alike = [&](int exponent) {
    return [&mantissas, exponent](int64_t i) {
      return std::ldexp(mantissas[static_cast<size_t>(i)], exponent);
    };
  };
  const auto check = [&](const char* what, const auto& element) {
    SCOPED_TRACE(what);
    Buffer<float> gradients({kCount});
    for (int64_t i = 0; i < kCount; ++i) gradients.data()[i] = element(i);
    Visible<StepResults> results;
    measure(ops<float>(), gradients.tensor, 1, results.get());
    EXPECT_EQ(results->grad_norm, exact_norm(gradients.tensor));
    std::reverse(gradients.data(), gradients.data() + kCount);
    measure(ops<float>(), gradients.tensor, 1, results.get());
    EXPECT_EQ(results->grad_norm, exact_norm(gradients.tensor));
  };
  const auto scaled = [&mantissas](int64_t i, int64_t exponent) {
    return std::ldexp(mantissas[static_cast<size_t>(i)], static_cast<int>(exponent));
  };
  check("every exponent, growing", [&](int64_t i) { return scaled(i, i * 270 / kCount - 148); });
  check("every exponent, mixed", [&](int64_t i) { return scaled(i, i * 7919 % 270 - 148); });
  check("40 binades", [&](int64_t i) { return scaled(i, -(i * 31 % 40)); });
  check("70 binades", [&](int64_t i) { return scaled(i, -(i * 31 % 70)); });
  check("one large", [&](int64_t i) { return scaled(i, i == kCount / 2 ? 20 : -30); });
  check("one very large", [&](int64_t i) { return scaled(i, i == kCount / 2 ? 120 : -120); });
  check("rows of zeros", [&](int64_t i) { return i / 3000 % 2 == 0 ? 0.0f : scaled(i, -9); });
  check("zeros", [](int64_t i) { return i % 2 == 0 ? 0.0f : -0.0f; });
  check("subnormal", all_alike(-135));
  check("the largest", [](int64_t) { return std::numeric_limits<float>::max(); });
  check("the smallest", [](int64_t) { return std::numeric_limits<float>::denorm_min(); });
}

TEST(GlobalNorm, IsNotFiniteIfAGradientIsNot) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    for (const int64_t at : {0, 1000, 4999}) {
      Buffer<float> gradients({5000}, random_values<float>(5000, 3));
      gradients.data()[at] = bad;
      Visible<StepResults> results;
      measure(ops<float>(), gradients.tensor, 1, results.get());
      EXPECT_FALSE(std::isfinite(results->grad_norm)) << bad << " at " << at;
      EXPECT_EQ(results->skip, 1);
    }
  }
}

// Ranks with any pieces, in any order, get the digits of a rank with everything.
TEST(GlobalNorm, OfPartsIsThatOfTheWhole) {
  constexpr int64_t kCount = 100'000;
  Buffer<float> gradients({kCount}, random_values<float>(kCount, 4));
  Visible<StepResults> whole, parts;
  measure(ops<float>(), gradients.tensor, 1, whole.get());
  for (int64_t pieces : {2, 3, 7, 128}) {
    ExactSum sum;
    for (int64_t p = pieces; p-- > 0;) {
      const int64_t begin = p * kCount / pieces, end = (p + 1) * kCount / pieces;
      parts->squares = {};
      run(ops<float>(), SquareSum{gradients.tensor.rows(begin, end - begin), parts.get()});
      sum.add(parts->squares);
    }
    parts->squares = sum;
    run(ops<float>(), ClipScale{1, parts.get()});
    EXPECT_EQ(whole->grad_norm, parts->grad_norm);
    EXPECT_EQ(whole->clip_scale, parts->clip_scale);
  }
}

// A rank with two pieces of the parameters rounds them like a rank with all of them.
TEST(AdamW, RoundsStochasticallyByPlaceInTheModel) {
  State<bf16> whole(4000), part(2000);
  for (State<bf16>* s : {&whole, &part}) s->stochastic_rounding = true;
  whole.segments = {{0, 4000, 0.1f}};
  part.segments = {{0, 800, 0.1f, 400}, {800, 2000, 0.1f, 1200}};
  const auto origin = [](size_t i) { return i < 800 ? i + 400 : i + 1200; };
  for (size_t i = 0; i < 2000; ++i) {
    part.masters.data()[i] = whole.masters.data()[origin(i)];
    part.gradients.data()[i] = whole.gradients.data()[origin(i)];
  }
  whole.step(), part.step();
  Buffer<bf16> again({1200});
  const Visible<StepInputs> rounding{{.seed = part.inputs->seed, .step = 1}};
  run(ops<bf16>(), Cast{again.tensor, part.masters.tensor.rows(800, 1200), rounding.get(), 2000});
  for (size_t i = 0; i < 2000; ++i) {
    ASSERT_EQ(part.weights.data()[i].bits, whole.weights.data()[origin(i)].bits) << i;
    if (i < 800) continue;
    ASSERT_EQ(again.data()[i - 800].bits, part.weights.data()[i].bits) << i;
  }
}

// Besides random numbers: halves between neighbours, denormals, overflowing values, infinities.
std::vector<float> values_to_round(int64_t count, double magnitude) {
  std::vector<float> values = random_values<float>(count, 1, magnitude);
  const uint32_t special[] = {0x00000000, 0x80000000, 0x3f808000, 0x3f818000,
                              0x00000001, 0x80008000, 0x007fffff, 0x7f7fffff,
                              0xff7f8000, 0x7f800000, 0xff800000};
  for (size_t i = 0; i < std::min(std::size(special), values.size()); ++i)
    values[values.size() - 1 - i] = std::bit_cast<float>(special[i]);
  return values;
}

void compare_casts(int64_t count, double magnitude, bool misaligned = false) {
  const std::vector<float> values = values_to_round(count, magnitude);
  Buffer<float> source({count}, values), back({count});
  Buffer<bf16> target({count});
  Buffer<double> wide({count});
  if (misaligned) misalign(source, back, target, wide);
  run(ops<float>(), Cast{target.tensor, source.tensor});
  expect_same_bits(target.values(), converted<bf16>(values), "fp32 to bf16");
  run(ops<float>(), Cast{back.tensor, target.tensor});
  expect_same_bits(back.values(), converted<float>(target.values()), "bf16 to fp32");
  run(ops<float>(), Cast{wide.tensor, source.tensor});
  expect_same_bits(wide.values(), converted<double>(values), "fp32 to fp64");
  run(ops<float>(), Cast{back.tensor, wide.tensor});
  expect_same_bits(back.values(), values, "fp64 to fp32");
  run(ops<float>(), Cast{target.tensor, wide.tensor});
  expect_same_bits(target.values(), converted<bf16>(values), "fp64 to bf16");
}
TEST(Cast, RoundsOnce) {
  compare_casts(70001, 3);
  for (double magnitude : {1e-40, 1e-20, 1e38}) compare_casts(203, magnitude);
  for (int64_t count : {1, 2, 7, 8, 9}) compare_casts(count, 1);
  compare_casts(2049, 3, true);
}

template <typename From, typename To>
void casts(int64_t count, bool misaligned) {
  Buffer<From> source({count}, random_values<From>(count, 1));
  Buffer<To> target({count});
  if (misaligned) misalign(source, target);
  run(ops<float>(), Cast{target.tensor, source.tensor});
  std::vector<To> expected;
  for (From x : source.values())
    expected.push_back(static_cast<To>(static_cast<Accumulator<From>>(x)));
  expect_same_bits(target.values(), expected, "cast");
}
template <typename From>
void casts_from() {
  for (bool misaligned : {false, true}) {
    casts<From, float>(77, misaligned);
    casts<From, bf16>(77, misaligned);
    casts<From, double>(77, misaligned);
  }
}
TEST(Cast, IsBetweenAnyTwoNumberTypes) {
  casts_from<float>();
  casts_from<bf16>();
  casts_from<double>();
}

template <typename From, typename To>
void adds(int64_t count, bool misaligned) {
  Buffer<From> source({count}, random_values<From>(count, 1));
  Buffer<To> sums({count}, random_values<To>(count, 2));
  if (misaligned) misalign(source, sums);
  std::vector<To> expected = sums.values();
  for (size_t i = 0; i < expected.size(); ++i)
    expected[i] += static_cast<To>(static_cast<Accumulator<From>>(source.values()[i]));
  run(ops<float>(), Cast{.destination = sums.tensor, .source = source.tensor, .accumulate = true});
  expect_same_bits(sums.values(), expected, "sums");
}
TEST(Cast, AddsWhatItConverts) {
  for (const bool misaligned : {false, true}) {
    for (const int64_t count : {1, 8, 77, 2051}) {
      adds<float, float>(count, misaligned);
      adds<bf16, float>(count, misaligned);
      adds<double, double>(count, misaligned);
    }
  }
  Buffer<float> source({8}, random_values<float>(8, 1));
  Buffer<bf16> sums({8}, std::vector<bf16>(8));
  EXPECT_THROW(run(ops<float>(),
                   Cast{.destination = sums.tensor, .source = source.tensor, .accumulate = true}),
               CheckError);
}

TEST(Cast, KeepsNaN) {
  Buffer<float> source({9}, std::vector<float>(9, NAN)), back({9});
  Buffer<bf16> target({9}, std::vector<bf16>(9));
  run(ops<float>(), Cast{target.tensor, source.tensor});
  run(ops<float>(), Cast{back.tensor, target.tensor});
  for (float x : back.values()) EXPECT_TRUE(std::isnan(x));
}

TEST(Cast, RefusesOtherSizes) {
  Buffer<float> source({7}, random_values<float>(7, 1));
  Buffer<double> wide({6});
  EXPECT_THROW(run(ops<float>(), Cast{wide.tensor, source.tensor}), CheckError);
}

}  // namespace
}  // namespace lathe::testing
