#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

struct Sizes {
  int64_t B, T, C, V, positions;
  float p;
};
const Sizes kSizes[] = {{1, 1, 1, 2, 1, 0},         {2, 2, 7, 2, 5, 0.5f},
                        {3, 17, 65, 65, 20, 0.2f},  {2, 65, 33, 97, 65, 0},
                        {4, 65, 384, 11, 70, 0.1f}, {1, 2048, 5, 9, 2048, 0.1f}};
// Tokens with many rows, none, or all rows; vocabularies of one and of four radix sort digits.
const Sizes kSpread[] = {{9, 70, 8, 2, 70, 0},
                         {5, 129, 24, 1, 129, 0.1f},
                         {3, 33, 16, 50257, 40, 0},
                         {30, 90, 7, 17, 90, 0.3f},
                         {13, 100, 1040, 300, 100, 0}};

template <typename T>
struct Case {
  using A = Accumulator<T>;
  Sizes s;
  Visible<StepInputs> inputs{{.seed = 0x123456789abcULL, .first_sequence = 5, .step = 3}};
  Buffer<T> wte, wpe, x, dx;
  Buffer<int32_t> tokens;
  Buffer<A> dwte, dwpe;
  Dropout dropout;

  explicit Case(const Sizes& sizes, double magnitude = 1)
      : s(sizes),
        wte({s.V, s.C}, random_values<T>(s.V * s.C, 1, magnitude)),
        wpe({s.positions, s.C}, random_values<T>(s.positions * s.C, 2, magnitude)),
        x({s.B, s.T, s.C}),
        dx({s.B, s.T, s.C}, random_values<T>(s.B * s.T * s.C, 3, magnitude)),
        tokens({s.B, s.T}, random_tokens(s.B * s.T, 4, s.V)),
        dwte({s.V, s.C}, std::vector<A>(static_cast<size_t>(s.V * s.C))),
        dwpe({s.positions, s.C}) {
    dropout = {s.p, 0, DropoutSite::embedding, s.p > 0 ? inputs.get() : nullptr};
  }
  Case(const Case&) = delete;

  void forward(int64_t first_position = 0) {
    run(ops<T>(),
        EmbeddingForward{x.tensor, tokens.tensor, wte.tensor, wpe.tensor, dropout, first_position});
  }
  void backward(bool accumulate) {
    run(ops<T>(),
        EmbeddingBackward{dwte.tensor, dwpe.tensor, dx.tensor, tokens.tensor, dropout, accumulate});
  }
};

// As by separate operations: the sum, then the dropout, each rounded.
template <typename T>
std::vector<T> plain_forward(const Case<T>& c) {
  using A = Accumulator<T>;
  std::vector<T> x(static_cast<size_t>(c.s.B * c.s.T * c.s.C));
  for (int64_t n = 0; n < c.s.B * c.s.T; ++n) {
    for (int64_t i = 0; i < c.s.C; ++i) {
      const size_t at = static_cast<size_t>(n * c.s.C + i);
      const A sum = static_cast<A>(c.wte.data()[c.tokens.data()[n] * c.s.C + i]) +
                    static_cast<A>(c.wpe.data()[n % c.s.T * c.s.C + i]);
      x[at] = static_cast<T>(sum);
      if (c.s.p == 0) continue;
      const uint64_t element = (c.inputs->first_sequence * c.s.T + n) * c.s.C + i;
      const A scale = is_kept(c.dropout, element) ? A(1) / (A(1) - static_cast<A>(c.s.p)) : A(0);
      x[at] = static_cast<T>(static_cast<A>(x[at]) * scale);
    }
  }
  return x;
}

TEST(Embedding, GradientsByFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Case<double> c(s);
    c.backward(false);
    const auto loss = [&] {
      c.forward();
      return dot(c.x.values(), c.dx.values());
    };
    expect_gradient(c.wte, c.dwte.values(), loss, "dwte");
    expect_gradient(c.wpe, c.dwpe.values(), loss, "dwpe");
  }
}

template <typename T>
void compare_forward(Case<T>& c) {
  c.forward();
  Case<double> reference(c.s);
  const auto copy = [](const Buffer<T>& from, const Buffer<double>& to) {
    const std::vector<double> values = converted<double>(from.values());
    std::copy(values.begin(), values.end(), to.data());
  };
  copy(c.wte, reference.wte), copy(c.wpe, reference.wpe);
  reference.forward();
  expect_close<T>(c.x.values(), reference.x.values(), plain_forward(c), "x");
}

// Sums over the rows in acc.
template <typename T>
void compare_backward(Case<T>& c) {
  using A = Accumulator<T>;
  const Sizes& s = c.s;
  std::vector<A> dwte(static_cast<size_t>(s.V * s.C)), dwpe(dwte);
  std::vector<double> dwte_exact(dwte.size());
  dwpe.assign(static_cast<size_t>(s.positions * s.C), A(0));
  std::vector<double> dwpe_exact(dwpe.size());
  for (int64_t n = 0; n < s.B * s.T; ++n) {
    for (int64_t i = 0; i < s.C; ++i) {
      A g = static_cast<A>(c.dx.data()[n * s.C + i]);
      const uint64_t element = (c.inputs->first_sequence * s.T + n) * s.C + i;
      if (s.p > 0) g *= is_kept(c.dropout, element) ? A(1) / (A(1) - static_cast<A>(s.p)) : A(0);
      dwte[static_cast<size_t>(c.tokens.data()[n] * s.C + i)] += g;
      dwpe[static_cast<size_t>(n % s.T * s.C + i)] += g;
      dwte_exact[static_cast<size_t>(c.tokens.data()[n] * s.C + i)] += static_cast<double>(g);
      dwpe_exact[static_cast<size_t>(n % s.T * s.C + i)] += static_cast<double>(g);
    }
  }
  c.backward(false);
  expect_close<A>(c.dwte.values(), dwte_exact, dwte, "dwte");
  expect_close<A>(c.dwpe.values(), dwpe_exact, dwpe, "dwpe");
  c.backward(true);  // now both accumulate
  for (std::vector<A>* once : {&dwte, &dwpe})
    for (A& g : *once) g += g;
  for (std::vector<double>* once : {&dwte_exact, &dwpe_exact})
    for (double& g : *once) g += g;
  expect_close<A>(c.dwte.values(), dwte_exact, dwte, "dwte twice");
  expect_close<A>(c.dwpe.values(), dwpe_exact, dwpe, "dwpe twice");
}

template <typename T>
void compare(std::span<const Sizes> sizes, double magnitude = 1, bool misaligned = false) {
  for (const Sizes& s : sizes) {
    SCOPED_TRACE(fmt::format("T {} C {} V {} times {}", s.T, s.C, s.V, magnitude));
    Case<T> c(s, magnitude);
    if (misaligned) misalign(c.wte, c.wpe, c.x, c.dx, c.tokens, c.dwte, c.dwpe);
    compare_forward(c);
    compare_backward(c);
  }
}
TEST(Embedding, ObeysTheToleranceRule) {
  compare<float>(kSizes);
  compare<float>(kSpread);
  compare<bf16>(kSizes);
  compare<bf16>(kSpread);
}

const Sizes kFew[] = {{3, 5, 16, 7, 6, 0.2f}, {2, 9, 13, 7, 9, 0}};
TEST(Embedding, ObeysTheToleranceRuleAtAnyMagnitude) {
  for (double magnitude : {1e-36, 1e-10, 1e10, 1e36}) {
    compare<float>(kFew, magnitude);
    compare<bf16>(kFew, magnitude);
  }
}
TEST(Embedding, ObeysTheToleranceRuleWhereNothingIsAligned) {
  compare<float>(kFew, 1, true);
  compare<bf16>(kFew, 1, true);
}

TEST(Embedding, LaterPositions) {
  Case<float> c({2, 3, 5, 7, 9, 0});
  c.forward(6);
  for (int64_t n = 0; n < 6; ++n)
    for (int64_t i = 0; i < 5; ++i)
      EXPECT_EQ(c.x.data()[n * 5 + i],
                c.wte.data()[c.tokens.data()[n] * 5 + i] + c.wpe.data()[(6 + n % 3) * 5 + i]);
  EXPECT_THROW(c.forward(7), CheckError);
}

TEST(Embedding, RefusesTokensOutsideTheVocabulary) {
  for (int32_t bad : {7, -1}) {
    Case<float> c({2, 3, 5, 7, 9, 0});
    c.tokens.data()[4] = bad;
    if (looks_at_values()) {
      EXPECT_THROW(c.forward(), CheckError);
      EXPECT_THROW(c.backward(false), CheckError);
      continue;
    }
    c.forward();
    for (int64_t i = 0; i < 30; ++i) EXPECT_EQ(std::isnan(c.x.data()[i]), i / 5 == 4) << i;
    c.backward(false);
    for (float g : c.dwte.values()) EXPECT_TRUE(std::isfinite(g));
    for (int64_t i = 0; i < 15; ++i) EXPECT_TRUE(std::isfinite(c.dwpe.data()[i]));
  }
}

}  // namespace
}  // namespace lathe::testing
