#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

struct Sizes {
  int64_t B, T, H, D;
  int64_t C() const { return H * D; }
};
std::string name_of(const Sizes& s) {
  return fmt::format("B {} T {} H {} D {}", s.B, s.T, s.H, s.D);
}

template <typename T>
std::vector<T> normal_values(int64_t n, uint64_t seed, double deviation = 1) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<T> values(static_cast<size_t>(n));
  for (T& v : values) v = T(static_cast<Accumulator<T>>(normal(generator)));
  return values;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

constexpr StepInputs kInputs{.seed = 0x1234567890abcdef, .first_sequence = 3, .step = 11};

// Dropout with its inputs in memory that the device can read.
class AttentionDropout {
 public:
  explicit AttentionDropout(double p, const StepInputs& inputs = kInputs) : inputs_(inputs) {
    dropout_ = {static_cast<float>(p), 5, DropoutSite::attention, inputs_.get()};
  }
  operator const Dropout&() const { return dropout_; }

 private:
  Visible<StepInputs> inputs_;
  Dropout dropout_;
};

uint64_t mask_element(const Sizes& s, const Dropout& dropout, int64_t b, int64_t h, int64_t query,
                      int64_t key) {
  const auto u = [](int64_t i) { return static_cast<uint64_t>(i); };
  return (((dropout.inputs->first_sequence + u(b)) * u(s.H) + u(h)) * u(s.T) + u(query)) * u(s.T) +
         u(key);
}

// ---- The operations.

template <typename T>
struct Results {
  std::vector<T> out, dqkv;
  std::vector<Accumulator<T>> logsumexp, sums;  // sums: of the columns of dqkv
};

template <typename T>
Results<T> attend(const Sizes& s, const std::vector<T>& qkv_values,
                  const std::vector<T>& dout_values, const Dropout& dropout,
                  bool misaligned = false, bool backward = true) {
  const Shape btc{s.B, s.T, s.C()}, bt3c{s.B, s.T, 3 * s.C()};
  Buffer<T> qkv(bt3c, qkv_values), out(btc);
  if (misaligned) misalign(qkv, out);
  const Buffer<Accumulator<T>> logsumexp({s.B, s.H, s.T});
  testing::run(ops<T>(), AttentionForward{out.tensor, logsumexp.tensor, qkv.tensor, s.H, dropout});
  if (!backward) return {out.values(), {}, logsumexp.values(), {}};
  Buffer<T> dqkv(bt3c), dout(btc, dout_values);
  Buffer<Accumulator<T>> sums({3 * s.C()});
  if (misaligned) misalign(dqkv, dout, sums);
  testing::run(ops<T>(), AttentionBackward{dqkv.tensor, sums.tensor, dout.tensor, out.tensor,
                                           logsumexp.tensor, qkv.tensor, s.H, dropout});
  return {out.values(), dqkv.values(), logsumexp.values(), sums.values()};
}

// ---- The plain implementation: one T x T matrix per head, sums in A, and every step's result
// rounded to T, as by separate operations.

template <typename T, typename A>
struct PlainResults {
  std::vector<T> out, dqkv;
  std::vector<A> logsumexp;
};

template <typename T, typename A>
class Plain {
 public:
  Plain(const Sizes& s, const std::vector<T>& qkv, const std::vector<T>& dout,
        const Dropout& dropout)
      : s_(s), qkv_(qkv), dout_(dout), dropout_(dropout) {}

  PlainResults<T, A> run() {
    r_.out.resize(dout_.size()), r_.dqkv.resize(qkv_.size());
    r_.logsumexp.resize(static_cast<size_t>(s_.B * s_.H * s_.T));
    for (int64_t b = 0; b < s_.B; ++b)
      for (int64_t h = 0; h < s_.H; ++h) head(b, h);
    return r_;
  }

 private:
  static A round(A x) { return static_cast<A>(T(x)); }
  size_t at(int which, int64_t b, int64_t t, int64_t h, int64_t c) const {
    return static_cast<size_t>((b * s_.T + t) * 3 * s_.C() + which * s_.C() + h * s_.D + c);
  }
  size_t out_at(int64_t b, int64_t t, int64_t h, int64_t c) const {
    return static_cast<size_t>((b * s_.T + t) * s_.C() + h * s_.D + c);
  }

  void head(int64_t b, int64_t h) {
    const A scale = A(1) / std::sqrt(static_cast<A>(s_.D));
    const A keep_scale = A(1) / (A(1) - static_cast<A>(dropout_.p));
    std::vector<A> dk(static_cast<size_t>(s_.T * s_.D)), dv(dk);
    for (int64_t q = 0; q < s_.T; ++q) {
      std::vector<A> p(static_cast<size_t>(q + 1)), keep(p), dropped(p), ds(p);
      A largest = -INFINITY, sum = 0, dot = 0;
      for (int64_t k = 0; k <= q; ++k) {
        A score = 0;
        for (int64_t c = 0; c < s_.D; ++c)
          score +=
              static_cast<A>(qkv_[at(0, b, q, h, c)]) * static_cast<A>(qkv_[at(1, b, k, h, c)]);
        p[k] = round(round(score) * scale);
        largest = std::max(largest, p[k]);
      }
      for (A& x : p) sum += x = std::exp(x - largest);
      r_.logsumexp[static_cast<size_t>((b * s_.H + h) * s_.T + q)] = largest + std::log(sum);
      for (int64_t k = 0; k <= q; ++k) {
        p[k] = round(p[k] / sum);
        keep[k] = dropout_.p == 0                                             ? A(1)
                  : is_kept(dropout_, mask_element(s_, dropout_, b, h, q, k)) ? keep_scale
                                                                              : A(0);
        dropped[k] = round(p[k] * keep[k]);
      }
      for (int64_t c = 0; c < s_.D; ++c) {
        A out = 0;
        for (int64_t k = 0; k <= q; ++k)
          out += dropped[k] * static_cast<A>(qkv_[at(2, b, k, h, c)]);
        r_.out[out_at(b, q, h, c)] = T(out);
      }
      for (int64_t k = 0; k <= q; ++k) {
        A dp = 0;
        for (int64_t c = 0; c < s_.D; ++c) {
          const A dout = static_cast<A>(dout_[out_at(b, q, h, c)]);
          dp += dout * static_cast<A>(qkv_[at(2, b, k, h, c)]);
          dv[static_cast<size_t>(k * s_.D + c)] += dropped[k] * dout;
        }
        ds[k] = round(round(dp) * keep[k]);
        dot += ds[k] * p[k];
      }
      for (int64_t k = 0; k <= q; ++k) ds[k] = round(round(p[k] * (ds[k] - dot)) * scale);
      for (int64_t c = 0; c < s_.D; ++c) {
        A dq = 0;
        for (int64_t k = 0; k <= q; ++k) {
          dq += ds[k] * static_cast<A>(qkv_[at(1, b, k, h, c)]);
          dk[static_cast<size_t>(k * s_.D + c)] += ds[k] * static_cast<A>(qkv_[at(0, b, q, h, c)]);
        }
        r_.dqkv[at(0, b, q, h, c)] = T(dq);
      }
    }
    for (int64_t k = 0; k < s_.T; ++k)
      for (int64_t c = 0; c < s_.D; ++c) {
        r_.dqkv[at(1, b, k, h, c)] = T(dk[static_cast<size_t>(k * s_.D + c)]);
        r_.dqkv[at(2, b, k, h, c)] = T(dv[static_cast<size_t>(k * s_.D + c)]);
      }
  }

  Sizes s_;
  std::vector<T> qkv_, dout_;
  Dropout dropout_;
  PlainResults<T, A> r_;
};

template <typename T>
PlainResults<T, Accumulator<T>> plain(const Sizes& s, const std::vector<T>& qkv,
                                      const std::vector<T>& dout, const Dropout& dropout) {
  return Plain<T, Accumulator<T>>(s, qkv, dout, dropout).run();
}

// In long double, so that the tolerance rule applies to double, too.
template <typename T>
PlainResults<long double, long double> reference(const Sizes& s, const std::vector<T>& qkv,
                                                 const std::vector<T>& dout,
                                                 const Dropout& dropout) {
  const auto wide = [](const std::vector<T>& from) {
    std::vector<long double> to;
    for (T v : from) to.push_back(static_cast<Accumulator<T>>(v));
    return to;
  };
  return Plain<long double, long double>(s, wide(qkv), wide(dout), dropout).run();
}

std::vector<double> doubles(const std::vector<long double>& values) {
  return std::vector<double>(values.begin(), values.end());
}

// ---- Against the plain implementation.

template <typename T>
void check_against_plain(const Sizes& s, double p, std::vector<T> qkv = {}) {
  if (qkv.empty()) qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 1);
  const auto dout = normal_values<T>(s.B * s.T * s.C(), 2);
  const AttentionDropout dropout(p);
  const auto r = attend<T>(s, qkv, dout, dropout);
  const auto simple = plain<T>(s, qkv, dout, dropout);
  const auto exact = reference<T>(s, qkv, dout, dropout);
  const std::string what = fmt::format("{} {} dropout {}", name_of(dtype_of<T>), name_of(s), p);
  expect_close(r.out, doubles(exact.out), simple.out, what + " out");
  expect_close(r.logsumexp, doubles(exact.logsumexp), simple.logsumexp, what + " logsumexp");
  expect_close(r.dqkv, doubles(exact.dqkv), simple.dqkv, what + " dqkv");
  expect_column_sums<T>(r.sums, r.dqkv, what + " sums");
}

// Around blocks of 32, 64 and 128; T divisible by four or not; every padded head size and sizes in
// between.
const Sizes kShapes[] = {{2, 1, 1, 16},    {1, 2, 3, 40},  {2, 17, 3, 64},   {1, 65, 5, 80},
                         {1, 65, 1, 128},  {2, 64, 4, 32}, {1, 130, 2, 16},  {1, 150, 1, 64},
                         {1, 5, 1, 256},   {2, 33, 2, 3},  {1, 127, 1, 112}, {1, 129, 1, 96},
                         {1, 132, 1, 128}, {1, 64, 3, 96}, {1, 72, 3, 5},    {1, 129, 1, 40}};

template <typename T>
class AttentionOf : public ::testing::Test {};
using AllTypes = ::testing::Types<float, bf16, double>;
TYPED_TEST_SUITE(AttentionOf, AllTypes);

TYPED_TEST(AttentionOf, AgreesWithPlain) {
  for (const Sizes& s : kShapes)
    for (double p : {0.0, 0.3}) check_against_plain<TypeParam>(s, p);
}

// bf16 alone: its kernels are separate, and fast even with CUDA on the CPU.
TEST(Attention, AgreesWithPlainOnLongSequences) {
  check_against_plain<bf16>({1, 2048, 1, 32}, 0);
  check_against_plain<bf16>({1, 1000, 1, 64}, 0.1);
  check_against_plain<bf16>({1, 515, 1, 128}, 0.1);
}

// Scores up to about 1e3, and scores that are all equal.
TYPED_TEST(AttentionOf, AgreesWithPlainOnAnyMagnitude) {
  const Sizes s{1, 100, 2, 64};
  for (double deviation : {1e-20, 1e-3, 16.0})
    check_against_plain<TypeParam>(s, 0.1,
                                   normal_values<TypeParam>(s.T * 3 * s.C(), 22, deviation));
}

TYPED_TEST(AttentionOf, AgreesWithPlainOnSharpScores) {
  const Sizes s{1, 200, 2, 32};
  check_against_plain<TypeParam>(s, 0.1, normal_values<TypeParam>(s.T * 3 * s.C(), 22, 3));
}

// The running maximum of every row grows from block to block.
TYPED_TEST(AttentionOf, AgreesWithPlainOnRisingScores) {
  using A = Accumulator<TypeParam>;
  const Sizes s{1, 300, 1, 32};
  auto qkv = normal_values<TypeParam>(s.T * 3 * s.C(), 23);
  for (int64_t t = 0; t < s.T; ++t)
    for (int64_t c = 0; c < 2 * s.C(); ++c) {
      TypeParam& x = qkv[static_cast<size_t>(t * 3 * s.C() + c)];
      const A factor = c < s.C() ? A(1) : static_cast<A>(t) / 15;
      x = TypeParam(std::fabs(static_cast<A>(x)) * factor);
    }
  check_against_plain<TypeParam>(s, 0, qkv);
}

// ---- Gradients by central differences in double.

double loss_of(const Sizes& s, const std::vector<double>& qkv, const std::vector<double>& weights,
               const Dropout& dropout) {
  const auto r = attend<double>(s, qkv, {}, dropout, false, false);
  double loss = 0;
  for (size_t i = 0; i < weights.size(); ++i) loss += weights[i] * r.out[i];
  return loss;
}

double difference(const Sizes& s, const std::vector<double>& qkv,
                  const std::vector<double>& direction, const std::vector<double>& weights,
                  const Dropout& dropout) {
  constexpr double kStep = 1e-5;
  std::vector<double> up = qkv, down = qkv;
  for (size_t i = 0; i < qkv.size(); ++i)
    up[i] += kStep * direction[i], down[i] -= kStep * direction[i];
  return (loss_of(s, up, weights, dropout) - loss_of(s, down, weights, dropout)) / (2 * kStep);
}

void check_gradient(const Sizes& s, double p) {
  const auto qkv = normal_values<double>(s.B * s.T * 3 * s.C(), 3);
  const auto dout = normal_values<double>(s.B * s.T * s.C(), 4);
  const AttentionDropout dropout(p);
  const auto results = attend<double>(s, qkv, dout, dropout);
  const auto& gradient = results.dqkv;
  double norm = 0;
  for (double g : gradient) norm += g * g;
  norm = std::sqrt(norm);
  const auto along = normal_values<double>(static_cast<int64_t>(qkv.size()), 5);
  double expected = 0;
  for (size_t i = 0; i < along.size(); ++i) expected += along[i] * gradient[i];
  EXPECT_NEAR(difference(s, qkv, along, dout, dropout), expected, 1e-7 * norm)
      << name_of(s) << " dropout " << p;
  // A bias of qkv.
  std::vector<double> bias = normal_values<double>(3 * s.C(), 7);
  double by_bias = 0;
  for (size_t i = 0; i < bias.size(); ++i) by_bias += bias[i] * results.sums[i];
  const size_t columns = bias.size();
  bias.resize(qkv.size());
  for (size_t i = columns; i < bias.size(); ++i) bias[i] = bias[i - columns];
  EXPECT_NEAR(difference(s, qkv, bias, dout, dropout), by_bias, 1e-7 * norm)
      << name_of(s) << " dropout " << p << " bias";
  std::mt19937_64 generator(6);
  for (int sample = 0; sample < 3; ++sample) {
    std::vector<double> one(qkv.size());
    const size_t i = generator() % qkv.size();
    one[i] = 1;
    EXPECT_NEAR(difference(s, qkv, one, dout, dropout), gradient[i], 1e-8 * (1 + norm))
        << name_of(s) << " dropout " << p << " element " << i;
  }
}

TEST(Attention, GradientsAreFiniteDifferences) {
  for (int64_t T : {1, 2, 17, 65})
    for (int64_t H : {1, 3, 5})
      for (int64_t D : {16, 40, 64, 80, 128})
        for (double p : {0.0, 0.25}) check_gradient({T < 20 ? 2 : 1, T, H, D}, p);
  check_gradient({1, 150, 1, 16}, 0.25);  // three blocks
}

// ---- Dropout.

// With equal scores and one-hot values the result is the matrix of kept probabilities; with
// one-hot gradients dv is its transpose. If T > D, only the last D keys (queries) are one-hot.
template <typename T>
void check_masks(const Sizes& s, const StepInputs& inputs, double p) {
  const AttentionDropout dropout(p, inputs);
  std::vector<T> qkv(static_cast<size_t>(s.B * s.T * 3 * s.C()), T(0.0f));
  std::vector<T> dout(qkv.size() / 3, T(0.0f));
  const int64_t first = std::max<int64_t>(0, s.T - s.D);
  for (int64_t row = 0; row < s.B * s.T; ++row)
    for (int64_t h = 0; h < s.H; ++h) {
      const int64_t column = row % s.T - first;
      if (column < 0) continue;
      qkv[static_cast<size_t>((row * 3 + 2) * s.C() + h * s.D + column)] = T(1.0f);
      dout[static_cast<size_t>(row * s.C() + h * s.D + column)] = T(1.0f);
    }
  const auto r = attend<T>(s, qkv, dout, dropout);
  const double error = dtype_of<T> == DType::bf16 ? 1e-2 : 1e-5;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t q = 0; q < s.T; ++q)
        for (int64_t k = 0; k < s.T; ++k) {
          const bool keep = k <= q && is_kept(dropout, mask_element(s, dropout, b, h, q, k));
          const double p_qk = keep ? 1 / (1 - p) / static_cast<double>(q + 1) : 0;
          const auto where = [&] { return fmt::format("{}: {} {} {} {}", name_of(s), b, h, q, k); };
          if (k >= first) {
            const int64_t at = (b * s.T + q) * s.C() + h * s.D + k - first;
            ASSERT_NEAR(static_cast<double>(r.out[static_cast<size_t>(at)]), p_qk, p_qk * error)
                << where();
          }
          if (q >= first) {
            const int64_t at = ((b * s.T + k) * 3 + 2) * s.C() + h * s.D + q - first;
            ASSERT_NEAR(static_cast<double>(r.dqkv[static_cast<size_t>(at)]), p_qk, p_qk * error)
                << where();
          }
        }
}

TYPED_TEST(AttentionOf, DropoutMasksAreTheDefinition) {
  const StepInputs far{.seed = 77, .first_sequence = uint64_t{1} << 40, .step = 1u << 31};
  for (const Sizes& s :
       {Sizes{2, 1, 3, 16}, Sizes{1, 17, 3, 17}, Sizes{2, 64, 2, 64}, Sizes{1, 66, 2, 80},
        Sizes{1, 92, 1, 96}, Sizes{1, 124, 1, 128}, Sizes{1, 140, 1, 32}, Sizes{1, 101, 1, 256}})
    for (const StepInputs& inputs : {kInputs, far}) check_masks<TypeParam>(s, inputs, 0.4);
}

TYPED_TEST(AttentionOf, DropoutIgnoresHowTheBatchIsSplit) {
  using T = TypeParam;
  const Sizes whole{4, 37, 3, 24}, half{2, 37, 3, 24};
  const auto qkv = normal_values<T>(whole.B * whole.T * 3 * whole.C(), 8);
  const auto dout = normal_values<T>(whole.B * whole.T * whole.C(), 9);
  const auto all = attend<T>(whole, qkv, dout, AttentionDropout(0.2));
  Results<T> parts;
  for (int i = 0; i < 2; ++i) {
    StepInputs inputs = kInputs;
    inputs.first_sequence += static_cast<uint64_t>(2 * i);
    const auto part_of = [&](const std::vector<T>& v) {
      const auto middle = static_cast<std::ptrdiff_t>(v.size() / 2);
      return std::vector<T>(v.begin() + i * middle, v.begin() + (i + 1) * middle);
    };
    const auto part = attend<T>(half, part_of(qkv), part_of(dout), AttentionDropout(0.2, inputs));
    parts.out.insert(parts.out.end(), part.out.begin(), part.out.end());
    parts.dqkv.insert(parts.dqkv.end(), part.dqkv.begin(), part.dqkv.end());
    parts.logsumexp.insert(parts.logsumexp.end(), part.logsumexp.begin(), part.logsumexp.end());
  }
  EXPECT_TRUE(same_bits(all.out, parts.out));
  EXPECT_TRUE(same_bits(all.dqkv, parts.dqkv));
  EXPECT_TRUE(same_bits(all.logsumexp, parts.logsumexp));
}

// ---- Causality, extremes, repeatability.

TYPED_TEST(AttentionOf, TheFutureChangesNothing) {
  using T = TypeParam;
  const Sizes s{1, 140, 1, 40};
  const auto qkv = normal_values<T>(s.T * 3 * s.C(), 10);
  auto dout = normal_values<T>(s.T * s.C(), 11);
  const auto a = attend<T>(s, qkv, dout, AttentionDropout(0.1));
  for (int64_t t : {1, 64, 65, 130}) {
    auto changed = qkv;
    for (size_t i = static_cast<size_t>(t * 3 * s.C()); i < changed.size(); ++i)
      changed[i] = T(static_cast<Accumulator<T>>(changed[i]) * 50 + 1);
    const auto b = attend<T>(s, changed, dout, AttentionDropout(0.1));
    const auto rows = static_cast<size_t>(t * s.C());
    EXPECT_EQ(std::memcmp(a.out.data(), b.out.data(), rows * sizeof(T)), 0) << t;
    EXPECT_NE(std::memcmp(a.out.data() + rows, b.out.data() + rows, s.C() * sizeof(T)), 0) << t;
    for (int64_t q = 0; q < t; ++q) {  // dq of the past, too
      const auto at = static_cast<size_t>(q * 3 * s.C());
      ASSERT_EQ(std::memcmp(&a.dqkv[at], &b.dqkv[at], s.C() * sizeof(T)), 0) << t << " " << q;
      ASSERT_EQ(a.logsumexp[static_cast<size_t>(q)], b.logsumexp[static_cast<size_t>(q)]);
    }
  }
}

TYPED_TEST(AttentionOf, ExtremesStayFinite) {
  using T = TypeParam;
  using A = Accumulator<T>;
  for (double deviation : {0.0, 1e-30, 1e-18, 1.0, 60.0, 300.0})  // scores up to about 1e6
    for (const Sizes& s : {Sizes{2, 1, 1, 64}, Sizes{1, 130, 1, 64}}) {
      const auto qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 12, deviation);
      const auto dout = normal_values<T>(s.B * s.T * s.C(), 13);
      const auto r = attend<T>(s, qkv, dout, AttentionDropout(0));
      A largest = 0;
      for (T v : qkv) largest = std::max(largest, std::fabs(static_cast<A>(v)));
      for (T v : r.out) ASSERT_LE(std::fabs(static_cast<A>(v)), largest * A(1.01)) << deviation;
      for (T v : r.dqkv) ASSERT_TRUE(std::isfinite(static_cast<A>(v))) << deviation;
      for (A v : r.logsumexp) ASSERT_TRUE(std::isfinite(v)) << deviation;
    }
}

TYPED_TEST(AttentionOf, OneTokenReturnsItsValue) {
  using T = TypeParam;
  const Sizes s{3, 1, 2, 24};
  const auto qkv = normal_values<T>(s.B * 3 * s.C(), 14, 100);
  const auto dout = normal_values<T>(s.B * s.C(), 15);
  const auto r = attend<T>(s, qkv, dout, AttentionDropout(0));
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t c = 0; c < s.C(); ++c) {
      const auto i = static_cast<size_t>(b * s.C() + c);
      const auto v = static_cast<size_t>((b * 3 + 2) * s.C() + c);
      const auto value = static_cast<double>(qkv[v]);
      EXPECT_NEAR(static_cast<double>(r.out[i]), value, ulp_at<T>(value));
    }
}

TYPED_TEST(AttentionOf, RepeatsBitwise) {
  using T = TypeParam;
  const Sizes s{2, 130, 1, 48};
  const auto qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 16);
  const auto dout = normal_values<T>(s.B * s.T * s.C(), 17);
  const auto first = attend<T>(s, qkv, dout, AttentionDropout(0.1));
  for (int i = 0; i < 2; ++i) {
    const auto again = attend<T>(s, qkv, dout, AttentionDropout(0.1));
    ASSERT_TRUE(same_bits(first.out, again.out));
    ASSERT_TRUE(same_bits(first.dqkv, again.dqkv));
    ASSERT_TRUE(same_bits(first.sums, again.sums));
    ASSERT_TRUE(same_bits(first.logsumexp, again.logsumexp));
  }
}

TYPED_TEST(AttentionOf, AlignmentOfTensorsChangesNothing) {
  using T = TypeParam;
  for (const Sizes& s : {Sizes{1, 70, 2, 40}, Sizes{1, 33, 1, 128}}) {
    const auto qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 24);
    const auto dout = normal_values<T>(s.B * s.T * s.C(), 25);
    const auto aligned = attend<T>(s, qkv, dout, AttentionDropout(0.1));
    const auto shifted = attend<T>(s, qkv, dout, AttentionDropout(0.1), true);
    EXPECT_TRUE(same_bits(aligned.out, shifted.out));
    EXPECT_TRUE(same_bits(aligned.logsumexp, shifted.logsumexp));
    // delta may be summed in another order
    const auto simple = plain<T>(s, qkv, dout, AttentionDropout(0.1));
    const auto exact = reference<T>(s, qkv, dout, AttentionDropout(0.1));
    expect_close(shifted.dqkv, doubles(exact.dqkv), simple.dqkv, name_of(s));
    expect_column_sums<T>(shifted.sums, shifted.dqkv, name_of(s));
  }
}

TYPED_TEST(AttentionOf, SumsOfTheGradientAccumulateOrAreAbsent) {
  using T = TypeParam;
  for (const Sizes& s : {Sizes{2, 70, 2, 40}, Sizes{3, 5, 1, 200}}) {
    const Shape btc{s.B, s.T, s.C()}, bt3c{s.B, s.T, 3 * s.C()};
    const Buffer<T> qkv(bt3c, normal_values<T>(s.B * s.T * 3 * s.C(), 30)), out(btc), dqkv(bt3c);
    const Buffer<T> dout(btc, normal_values<T>(s.B * s.T * s.C(), 31));
    const Buffer<Accumulator<T>> logsumexp({s.B, s.H, s.T}), sums({3 * s.C()});
    testing::run(ops<T>(), AttentionForward{out.tensor, logsumexp.tensor, qkv.tensor, s.H, {}});
    AttentionBackward args{dqkv.tensor,      sums.tensor, dout.tensor, out.tensor,
                           logsumexp.tensor, qkv.tensor,  s.H,         {}};
    testing::run(ops<T>(), args);
    const std::vector<T> once = dqkv.values();
    auto twice = sums.values();
    for (auto& sum : twice) sum *= 2;
    args.accumulate = true;
    testing::run(ops<T>(), args);
    EXPECT_TRUE(same_bits(sums.values(), twice)) << name_of(s);
    args.dqkv_sums_3c = {};
    testing::run(ops<T>(), args);
    EXPECT_TRUE(same_bits(dqkv.values(), once)) << name_of(s);
  }
}

TYPED_TEST(AttentionOf, TooSmallAWorkspaceIsRefused) {
  using T = TypeParam;
  const Sizes s{1, 70, 1, 40};
  const Buffer<T> qkv({1, s.T, 3 * s.C()}), dqkv({1, s.T, 3 * s.C()});
  const Buffer<T> out({1, s.T, s.C()}), dout({1, s.T, s.C()});
  const Buffer<Accumulator<T>> logsumexp({1, 1, s.T}), sums({3 * s.C()});
  const AttentionBackward args{dqkv.tensor,      sums.tensor, dout.tensor, out.tensor,
                               logsumexp.tensor, qkv.tensor,  1,           {}};
  const auto scratch = workspace_for(ops<T>(), args);
  Tensor workspace = scratch.tensor;
  workspace.shape.dim[0] -= 1;
  EXPECT_THROW(testing::run(ops<T>(), args, workspace), CheckError);
}

TYPED_TEST(AttentionOf, WrongShapesAreRefused) {
  using T = TypeParam;
  const Buffer<T> qkv({1, 4, 48}), out({1, 4, 16}), longer({1, 5, 16});
  const Buffer<Accumulator<T>> logsumexp({1, 2, 4});
  const auto refuses = [](const AttentionForward& args) {
    EXPECT_THROW(testing::run(ops<T>(), args), CheckError);
  };
  refuses({out.tensor, logsumexp.tensor, qkv.tensor, 3, {}});        // 16 columns, three heads
  refuses({longer.tensor, logsumexp.tensor, qkv.tensor, 2, {}});     // out has one row too many
  refuses({out.tensor, out.tensor, qkv.tensor, 2, {}});              // no logsumexp
  refuses({out.tensor, logsumexp.tensor, qkv.tensor, 2, {.p = 1}});  // nothing would be kept
}

// ---- With a cache.

// Feeds T tokens in pieces into a cache of M positions, the unused ones NaN.
template <typename T>
std::vector<T> run_cached(const Sizes& s, const std::vector<T>& qkv, int64_t M,
                          const std::vector<int64_t>& pieces, bool misaligned = false) {
  const int64_t C = s.C();
  Buffer<T> keys({s.B, M, C}), values({s.B, M, C});
  if (misaligned) misalign(keys, values);
  std::vector<T> out(static_cast<size_t>(s.B * s.T * C));
  int64_t past = 0;
  for (int64_t n : pieces) {
    std::vector<T> tokens;
    for (int64_t b = 0; b < s.B; ++b) {
      const auto from = qkv.begin() + (b * s.T + past) * 3 * C;
      tokens.insert(tokens.end(), from, from + n * 3 * C);
    }
    Buffer<T> piece({s.B, n, C}), fed({s.B, n, 3 * C}, tokens);
    if (misaligned) misalign(piece, fed);
    testing::run(ops<T>(),
                 AttentionCached{piece.tensor, keys.tensor, values.tensor, fed.tensor, s.H, past});
    for (int64_t b = 0; b < s.B; ++b)
      std::copy_n(piece.data() + b * n * C, n * C, out.begin() + (b * s.T + past) * C);
    past += n;
  }
  EXPECT_EQ(past, s.T);
  return out;
}

TYPED_TEST(AttentionOf, CachedAgreesWithPlain) {
  using T = TypeParam;
  for (const Sizes& s : {Sizes{2, 83, 3, 40}, Sizes{1, 70, 1, 128}}) {
    const auto qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 19);
    const std::vector<T> dout(qkv.size() / 3, T(0));
    const auto simple = plain<T>(s, qkv, dout, AttentionDropout(0));
    const auto exact = doubles(reference<T>(s, qkv, dout, AttentionDropout(0)).out);
    const std::vector<int64_t> singly(static_cast<size_t>(s.T), 1);
    for (const auto& pieces :
         {std::vector<int64_t>{s.T}, {1, s.T - 1}, {40, 1, 1, s.T - 42}, {s.T - 10, 10}, singly})
      expect_close(run_cached(s, qkv, s.T + 5, pieces), exact, simple.out,
                   fmt::format("{} in {} pieces", name_of(s), pieces.size()));
  }
}

TYPED_TEST(AttentionOf, CachedAgreesWithPlainOnAnyMagnitude) {
  using T = TypeParam;
  const Sizes s{1, 60, 2, 24};
  for (double deviation : {1e-20, 1e-3, 16.0}) {
    const auto qkv = normal_values<T>(s.B * s.T * 3 * s.C(), 26, deviation);
    const std::vector<T> dout(qkv.size() / 3, T(0));
    const auto simple = plain<T>(s, qkv, dout, AttentionDropout(0));
    const auto exact = doubles(reference<T>(s, qkv, dout, AttentionDropout(0)).out);
    for (bool misaligned : {false, true})
      expect_close(run_cached(s, qkv, s.T, {s.T - 9, 1, 8}, misaligned), exact, simple.out,
                   fmt::format("times {}", deviation));
  }
}

// One query over all positions of a cache: its row of the scores in plain loops.
template <typename A, typename T>
std::vector<A> attend_to_cache(const Buffer<T>& qkv, const Buffer<T>& keys, const Buffer<T>& values,
                               int64_t positions, int64_t D) {
  const auto at = [](const Buffer<T>& from, int64_t i) {
    return static_cast<A>(static_cast<Accumulator<T>>(from.data()[i]));
  };
  std::vector<A> p(static_cast<size_t>(positions)), out(static_cast<size_t>(D));
  A largest = -INFINITY, sum = 0;
  for (int64_t k = 0; k < positions; ++k) {
    A score = 0;
    for (int64_t c = 0; c < D; ++c) score += at(qkv, c) * at(keys, k * D + c);
    p[static_cast<size_t>(k)] = score / std::sqrt(static_cast<A>(D));
    largest = std::max(largest, p[static_cast<size_t>(k)]);
  }
  for (A& x : p) sum += x = std::exp(x - largest);
  for (int64_t k = 0; k < positions; ++k)
    for (int64_t c = 0; c < D; ++c)
      out[static_cast<size_t>(c)] += p[static_cast<size_t>(k)] / sum * at(values, k * D + c);
  return out;
}

TYPED_TEST(AttentionOf, CachedAgreesWithPlainOnLongSequences) {
  using T = TypeParam;
  using A = Accumulator<T>;
  for (int64_t positions : {1, 2, 1000, 2048}) {
    const int64_t D = 40;
    const Buffer<T> qkv({1, 1, 3 * D}, normal_values<T>(3 * D, 27)), out({1, 1, D});
    const Buffer<T> keys({1, positions, D}, normal_values<T>(positions * D, 28));
    const Buffer<T> values({1, positions, D}, normal_values<T>(positions * D, 29));
    testing::run(ops<T>(), AttentionCached{out.tensor, keys.tensor, values.tensor, qkv.tensor, 1,
                                           positions - 1});
    // By now the cache holds its own key and value.
    expect_close<T>(
        out.values(),
        converted<double>(attend_to_cache<long double>(qkv, keys, values, positions, D)),
        converted<T>(attend_to_cache<A>(qkv, keys, values, positions, D)),
        fmt::format("{} positions", positions));
  }
}

TYPED_TEST(AttentionOf, CacheTooShortIsRefused) {
  using T = TypeParam;
  const Buffer<T> out({1, 1, 8}), keys({1, 4, 8}), values({1, 4, 8}), qkv({1, 1, 24});
  const AttentionCached args{out.tensor, keys.tensor, values.tensor, qkv.tensor, 1, 4};
  EXPECT_THROW(testing::run(ops<T>(), args), CheckError);
}

}  // namespace
}  // namespace lathe::testing
