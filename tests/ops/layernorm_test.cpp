#include "tests/ops/ops_testing.h"

namespace lathe::testing {
namespace {

struct Sizes {
  int64_t B, T, C;
  bool residual, bias;
  float p;
};
const Sizes kSizes[] = {{1, 1, 2, true, true, 0},      {2, 2, 7, true, false, 0.5f},
                        {3, 17, 65, true, true, 0.2f}, {2, 65, 33, false, true, 0},
                        {2, 65, 128, true, false, 0},  {1, 65, 384, true, true, 0.1f}};
// Widths for which a GPU uses other instances of its kernels, and other numbers of rows per block.
const Sizes kWide[] = {
    {1, 7, 256, true, true, 0},     {3, 7, 768, true, true, 0.1f},  {1, 3, 2560, true, true, 0},
    {1, 3, 5120, true, true, 0},    {1, 3, 5128, true, true, 0},    {1, 5, 520, true, true, 0.1f},
    {2, 5, 776, true, false, 0},    {1, 3, 1024, true, true, 0.2f}, {1, 3, 1600, false, true, 0},
    {1, 3, 2056, true, true, 0.1f}, {1, 2, 4104, true, false, 0},   {1, 2, 8192, true, true, 0.5f},
    {1, 2, 8200, true, true, 0.1f}, {2, 150, 40, true, true, 0.1f}, {1, 3, 1999, true, true, 0.1f},
    {1, 2048, 8, true, true, 0.1f}, {1, 515, 21, true, false, 0}};

template <typename T>
struct Case {
  using A = Accumulator<T>;
  Sizes s;
  double magnitude;  // of the values to normalise, and of the gradients
  int64_t rows = s.B * s.T, elements = rows * s.C;
  Shape btc{s.B, s.T, s.C};
  Visible<StepInputs> inputs{{.seed = 99, .first_sequence = 7, .step = 11}};
  Buffer<T> x{btc, random_values<T>(elements, 1, magnitude)};
  Buffer<T> residual_in{btc, random_values<T>(elements, 2, magnitude)};
  Buffer<T> weight{{s.C}, random_values<T>(s.C, 3)}, bias{{s.C}, random_values<T>(s.C, 4)};
  Buffer<T> out{btc}, residual_out{btc};
  Buffer<A> mean{{s.B, s.T}}, rstd{{s.B, s.T}};
  Buffer<T> dout{btc, random_values<T>(elements, 5, magnitude)};
  Buffer<T> d_residual{btc, random_values<T>(elements, 6, magnitude)}, dx{btc};
  Buffer<A> dweight{{s.C}}, dbias{{s.C}}, dx_sums{{s.C}};

  explicit Case(const Sizes& sizes, double times = 1) : s(sizes), magnitude(times) {}
  Dropout dropout() const {
    return {s.p, 2, DropoutSite::mlp_projection, s.p > 0 ? inputs.get() : nullptr};
  }
  void forward() {
    LayerNormForward a;
    a.out_btc = out.tensor, a.mean_bt = mean.tensor, a.rstd_bt = rstd.tensor;
    a.residual_in_btc = residual_in.tensor, a.weight_c = weight.tensor;
    if (s.residual) a.x_btc = x.tensor, a.residual_out_btc = residual_out.tensor;
    if (s.bias) a.bias_c = bias.tensor;
    a.dropout = dropout();
    run(ops<T>(), a);
  }
  const Buffer<T>& normalised() const { return s.residual ? residual_out : residual_in; }
  // The gradient of x, the added value, as stored.
  const Buffer<T>& added() const { return s.p > 0 ? dx : d_residual; }
  void backward(bool fresh, bool accumulate, bool sums = true) {
    LayerNormBackward a;
    a.d_residual_btc = d_residual.tensor, a.dweight_c = dweight.tensor;
    if (s.p > 0) a.dx_btc = dx.tensor;
    if (s.bias) a.dbias_c = dbias.tensor;
    if (s.bias && sums) a.dx_sums_c = dx_sums.tensor;
    a.dout_btc = dout.tensor, a.residual_out_btc = normalised().tensor;
    a.mean_bt = mean.tensor, a.rstd_bt = rstd.tensor, a.weight_c = weight.tensor;
    a.dropout = dropout(), a.fresh = fresh, a.accumulate = accumulate;
    run(ops<T>(), a);
  }
};

TEST(LayerNorm, GradientsByFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    for (bool fresh : {false, true}) {
      Case<double> c(s);
      const std::vector<double> later = c.d_residual.values();
      c.forward();
      c.backward(fresh, false);
      const auto loss = [&] {
        c.forward();
        return dot(c.out.values(), c.dout.values()) +
               (fresh ? 0 : dot(c.normalised().values(), later));
      };
      const std::vector<double> d_residual = c.d_residual.values();
      expect_gradient(c.residual_in, d_residual, loss, "residual");
      if (s.residual) expect_gradient(c.x, s.p > 0 ? c.dx.values() : d_residual, loss, "x");
      expect_gradient(c.weight, c.dweight.values(), loss, "weight");
      if (!s.bias) continue;
      expect_gradient(c.bias, c.dbias.values(), loss, "bias");
      // A bias of the projection whose output is added.
      const Buffer<double> projection_bias({s.C}, std::vector<double>(static_cast<size_t>(s.C)));
      const Buffer<double>& output = s.residual ? c.x : c.residual_in;
      const std::vector<double> unbiased = output.values();
      const auto loss_with_bias = [&] {
        for (int64_t i = 0; i < c.elements; ++i)
          output.data()[i] += projection_bias.data()[i % s.C];
        const double result = loss();
        std::copy(unbiased.begin(), unbiased.end(), output.data());
        return result;
      };
      expect_gradient(projection_bias, c.dx_sums.values(), loss_with_bias, "dx_sums");
    }
  }
}

template <typename T>
void accumulates() {
  for (int64_t channels : {65, 64}) {
    Case<T> c({3, 17, channels, true, true, 0});
    c.forward();
    c.backward(true, false);
    auto dweight = c.dweight.values(), dbias = c.dbias.values(), dx_sums = c.dx_sums.values();
    c.backward(true, true);
    for (auto* once : {&dweight, &dbias, &dx_sums})
      for (auto& sum : *once) sum *= 2;
    expect_same_bits(c.dweight.values(), dweight, "dweight");
    expect_same_bits(c.dbias.values(), dbias, "dbias");
    expect_same_bits(c.dx_sums.values(), dx_sums, "dx_sums");
  }
}
TEST(LayerNorm, AccumulatesItsWeights) {
  accumulates<double>();
  accumulates<float>();
  accumulates<bf16>();
}

template <typename T>
void sums_may_be_absent() {
  for (int64_t channels : {65, 64}) {
    Case<T> with({3, 17, channels, true, true, 0.1f}), without(with.s);
    with.forward(), without.forward();
    with.backward(false, false), without.backward(false, false, false);
    expect_same_bits(with.d_residual.values(), without.d_residual.values(), "d_residual");
    expect_same_bits(with.dx.values(), without.dx.values(), "dx");
    expect_same_bits(with.dweight.values(), without.dweight.values(), "dweight");
    expect_same_bits(with.dbias.values(), without.dbias.values(), "dbias");
  }
}
TEST(LayerNorm, TheSumsOfDxMayBeAbsent) {
  sums_may_be_absent<double>();
  sums_may_be_absent<float>();
  sums_may_be_absent<bf16>();
}

// A plain implementation in the number type, operation by operation.
template <typename T>
struct Plain {
  using A = Accumulator<T>;
  std::vector<T> out, residual, d_residual, dx;
  std::vector<A> mean, rstd, dweight, dbias;

  explicit Plain(const Case<T>& c)
      : out(static_cast<size_t>(c.elements)),
        residual(c.residual_in.values()),
        d_residual(c.d_residual.values()),
        dx(out),
        mean(static_cast<size_t>(c.rows)),
        rstd(mean),
        dweight(static_cast<size_t>(c.s.C)),
        dbias(dweight) {
    for (int64_t n = 0; n < c.rows; ++n) row(c, static_cast<size_t>(n));
  }

  static A scale(const Case<T>& c, size_t at) {
    if (c.s.p == 0) return 1;
    const uint64_t first = c.inputs->first_sequence * static_cast<uint64_t>(c.s.T * c.s.C);
    return is_kept(c.dropout(), first + at) ? 1 / (A(1) - static_cast<A>(c.s.p)) : A(0);
  }
  void row(const Case<T>& c, size_t n) {
    const size_t C = static_cast<size_t>(c.s.C), at = n * C;
    A sum = 0, squares = 0;
    for (size_t i = 0; i < C; ++i) {
      if (c.s.residual) {
        const T kept = static_cast<T>(static_cast<A>(c.x.data()[at + i]) * scale(c, at + i));
        residual[at + i] = static_cast<T>(static_cast<A>(residual[at + i]) + static_cast<A>(kept));
      }
      sum += static_cast<A>(residual[at + i]);
    }
    mean[n] = sum / static_cast<A>(C);
    for (size_t i = 0; i < C; ++i) {
      const A centred = static_cast<A>(residual[at + i]) - mean[n];
      squares += centred * centred;
    }
    rstd[n] = 1 / std::sqrt(squares / static_cast<A>(C) + A(1e-5));
    A dnorm = 0, dnorm_hat = 0;
    const auto hat = [&](size_t i) {
      return (static_cast<A>(residual[at + i]) - mean[n]) * rstd[n];
    };
    for (size_t i = 0; i < C; ++i) {
      const A weight = static_cast<A>(c.weight.data()[i]),
              d = static_cast<A>(c.dout.data()[at + i]);
      out[at + i] =
          static_cast<T>(hat(i) * weight + (c.s.bias ? static_cast<A>(c.bias.data()[i]) : A(0)));
      dnorm += d * weight, dnorm_hat += d * weight * hat(i);
      dweight[i] += d * hat(i), dbias[i] += d;
    }
    for (size_t i = 0; i < C; ++i) {
      const A weight = static_cast<A>(c.weight.data()[i]),
              d = static_cast<A>(c.dout.data()[at + i]);
      const A size = static_cast<A>(C);
      const T g =
          static_cast<T>((d * weight - dnorm / size - hat(i) * (dnorm_hat / size)) * rstd[n]);
      d_residual[at + i] = static_cast<T>(static_cast<A>(d_residual[at + i]) + static_cast<A>(g));
      dx[at + i] = static_cast<T>(static_cast<A>(d_residual[at + i]) * scale(c, at + i));
    }
  }
};

// `offset` is added to the values to normalise.
template <typename T>
void compare(std::span<const Sizes> sizes, double magnitude = 1, double offset = 0,
             bool misaligned = false) {
  using A = Accumulator<T>;
  for (const Sizes& s : sizes) {
    SCOPED_TRACE(fmt::format("T {} C {} times {} plus {}", s.T, s.C, magnitude, offset));
    Case<T> c(s, magnitude);
    if (misaligned) {
      misalign(c.x, c.residual_in, c.weight, c.bias, c.out, c.residual_out, c.mean, c.rstd, c.dout,
               c.d_residual, c.dx, c.dweight, c.dbias, c.dx_sums);
    }
    for (int64_t i = 0; i < c.elements; ++i) {
      T& r = c.residual_in.data()[i];
      r = static_cast<T>(static_cast<A>(r) + static_cast<A>(offset));
    }
    const Plain<T> plain(c);
    Case<double> r(s);
    const auto copy = [](const auto& from, const auto& to) {
      const std::vector<double> values = converted<double>(from.values());
      std::copy(values.begin(), values.end(), to.data());
    };
    copy(c.x, r.x), copy(c.residual_in, r.residual_in), copy(c.weight, r.weight);
    copy(c.bias, r.bias), copy(c.dout, r.dout), copy(c.d_residual, r.d_residual);
    c.forward(), c.backward(false, false);
    r.forward(), r.backward(false, false);
    expect_close<T>(c.out.values(), r.out.values(), plain.out, "out");
    expect_close<A>(c.mean.values(), r.mean.values(), plain.mean, "mean");
    expect_close<A>(c.rstd.values(), r.rstd.values(), plain.rstd, "rstd");
    if (s.residual)
      expect_close<T>(c.residual_out.values(), r.residual_out.values(), plain.residual, "residual");
    expect_close<T>(c.d_residual.values(), r.d_residual.values(), plain.d_residual, "d_residual");
    if (s.p > 0) expect_close<T>(c.dx.values(), r.dx.values(), plain.dx, "dx");
    expect_close<A>(c.dweight.values(), r.dweight.values(), plain.dweight, "dweight");
    if (!s.bias) continue;
    expect_close<A>(c.dbias.values(), r.dbias.values(), plain.dbias, "dbias");
    expect_column_sums<T>(c.dx_sums.values(), c.added().values(), "dx_sums");
  }
}
TEST(LayerNorm, FloatObeysTheToleranceRule) {
  compare<float>(kSizes);
  compare<float>(kWide);
}
TEST(LayerNorm, Bf16ObeysTheToleranceRule) {
  compare<bf16>(kSizes);
  compare<bf16>(kWide);
}

const Sizes kFew[] = {
    {2, 17, 16, true, true, 0.2f}, {1, 33, 33, false, true, 0}, {1, 17, 1032, true, true, 0.2f}};
// From a variance that is negligible beside epsilon to one beside which epsilon is negligible.
TEST(LayerNorm, ObeysTheToleranceRuleAtAnyMagnitude) {
  for (double magnitude : {1e-30, 1e-10, 3e-3, 1e5, 1e15}) {
    compare<float>(kFew, magnitude);
    compare<bf16>(kFew, magnitude);
  }
}
TEST(LayerNorm, ObeysTheToleranceRuleFarFromZero) {
  for (double offset : {-100.0, 3e4}) {
    compare<float>(kFew, 1, offset);
    compare<bf16>(kFew, 1, offset);
  }
}
TEST(LayerNorm, ObeysTheToleranceRuleWhereNothingIsAligned) {
  compare<float>(kFew, 1, 0, true);
  compare<bf16>(kFew, 1, 0, true);
}

// The mask of a sequence depends on its global index alone.
TEST(LayerNorm, SplitMicroBatchesDropTheSame) {
  const Sizes whole{4, 9, 31, true, true, 0.3f}, half{2, 9, 31, true, true, 0.3f};
  Case<float> a(whole);
  a.forward();
  const size_t elements = static_cast<size_t>(a.elements / 2);
  for (size_t part = 0; part < 2; ++part) {
    Case<float> b(half);
    b.inputs->first_sequence = a.inputs->first_sequence + 2 * part;
    std::copy_n(a.x.data() + part * elements, elements, b.x.data());
    std::copy_n(a.residual_in.data() + part * elements, elements, b.residual_in.data());
    b.forward();
    const std::vector<float> all = a.residual_out.values();
    expect_same_bits(b.residual_out.values(),
                     std::vector<float>(all.begin() + static_cast<long>(part * elements),
                                        all.begin() + static_cast<long>((part + 1) * elements)),
                     "residual_out");
  }
}

TEST(LayerNorm, RefusesWrongShapesAndTypes) {
  Case<float> c({2, 3, 5, true, true, 0});
  LayerNormForward a;
  a.out_btc = c.out.tensor, a.mean_bt = c.mean.tensor, a.rstd_bt = c.rstd.tensor;
  a.residual_in_btc = c.residual_in.tensor, a.weight_c = c.weight.tensor;
  LayerNormForward wrong = a;
  wrong.weight_c.shape = {4};
  EXPECT_THROW(run(ops<float>(), wrong), CheckError);
  wrong = a;
  wrong.mean_bt.dtype = DType::bf16;
  EXPECT_THROW(run(ops<float>(), wrong), CheckError);
  EXPECT_THROW(run(ops<bf16>(), a), CheckError);
  wrong = a;
  wrong.x_btc = c.x.tensor;  // without residual_out
  EXPECT_THROW(run(ops<float>(), wrong), CheckError);
}

}  // namespace
}  // namespace lathe::testing
