#include "tests/ops/ops_testing.h"
#include "tests/tensor_cores.h"

namespace lathe::testing {
namespace {

// Two linears with a GELU between, as in the model's MLP: y = gelu(x w1 + b1) w2 + b2.
struct Sizes {
  int64_t N, I, H, O;
  bool bias;
  Gelu gelu;
};
const Sizes kSizes[] = {{1, 1, 1, 1, true, Gelu::tanh},      {2, 7, 13, 3, true, Gelu::exact},
                        {17, 65, 33, 19, false, Gelu::tanh}, {65, 40, 160, 40, true, Gelu::tanh},
                        {65, 33, 17, 130, true, Gelu::none}, {130, 64, 256, 64, true, Gelu::exact}};

template <typename T>
struct Case {
  using A = Accumulator<T>;
  Sizes s;
  double magnitude;  // of x and dy
  Buffer<T> x{{s.N, s.I}, random_values<T>(s.N* s.I, 1, magnitude)};
  Buffer<T> w1{{s.I, s.H}, random_values<T>(s.I*s.H, 2, 0.5)}, b1{{s.H}, random_values<T>(s.H, 3)};
  Buffer<T> w2{{s.H, s.O}, random_values<T>(s.H*s.O, 4, 0.5)}, b2{{s.O}, random_values<T>(s.O, 5)};
  Buffer<T> dy{{s.N, s.O}, random_values<T>(s.N* s.O, 6)};
  Buffer<T> pre{{s.N, s.H}}, h{{s.N, s.H}}, y{{s.N, s.O}}, dpre{{s.N, s.H}}, dx{{s.N, s.I}};
  Buffer<A> dw1{{s.I, s.H}}, db1{{s.H}}, dw2{{s.H, s.O}}, db2{{s.O}};

  explicit Case(const Sizes& sizes, double times = 1) : s(sizes), magnitude(times) {}
  bool has_gelu() const { return s.gelu != Gelu::none; }
  LinearForward first(bool keep = true) const {
    LinearForward a;
    a.y_no = h.tensor, a.x_ni = x.tensor, a.weight_io = w1.tensor, a.gelu = s.gelu;
    if (has_gelu() && keep) a.pre_activation_no = pre.tensor;
    if (s.bias) a.bias_o = b1.tensor;
    return a;
  }
  void forward() {
    run(ops<T>(), first());
    LinearForward a;
    a.y_no = y.tensor, a.x_ni = h.tensor, a.weight_io = w2.tensor;
    if (s.bias) a.bias_o = b2.tensor;
    run(ops<T>(), a);
  }
  void backward(bool accumulate) {
    LinearBackward a;
    a.dx_ni = dpre.tensor, a.dweight_io = dw2.tensor, a.dy_no = dy.tensor, a.x_ni = h.tensor;
    a.weight_io = w2.tensor, a.gelu = s.gelu, a.accumulate = accumulate;
    if (has_gelu()) a.input_pre_activation_ni = pre.tensor;
    if (s.bias) a.dbias_o = db2.tensor;
    if (s.bias && has_gelu()) a.dx_sums_i = db1.tensor;
    run(ops<T>(), a);
    LinearBackward b;
    b.dx_ni = dx.tensor, b.dweight_io = dw1.tensor, b.dy_no = dpre.tensor, b.x_ni = x.tensor;
    b.weight_io = w1.tensor, b.accumulate = accumulate;
    if (s.bias && !has_gelu()) b.dbias_o = db1.tensor;
    run(ops<T>(), b);
  }
};

TEST(Linear, GradientsByFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Case<double> c(s);
    c.forward();
    c.backward(false);
    const auto loss = [&] {
      c.forward();
      return dot(c.y.values(), c.dy.values());
    };
    expect_gradient(c.x, c.dx.values(), loss, "x");
    expect_gradient(c.w1, c.dw1.values(), loss, "w1");
    expect_gradient(c.w2, c.dw2.values(), loss, "w2");
    if (!s.bias) continue;
    expect_gradient(c.b1, c.db1.values(), loss, "b1");
    expect_gradient(c.b2, c.db2.values(), loss, "b2");
  }
}

template <typename T>
void accumulates() {
  using A = Accumulator<T>;
  Case<T> c(kSizes[3]);
  c.forward();
  c.backward(false);
  std::vector<A> dw = c.dw1.values(), db1 = c.db1.values(), db = c.db2.values();
  c.backward(true);
  for (std::vector<A>* once : {&dw, &db1, &db})
    for (A& sum : *once) sum *= 2;
  expect_close<A>(c.dw1.values(), converted<double>(dw), dw, "dweight");
  expect_close<A>(c.db2.values(), converted<double>(db), db, "dbias");
  expect_same_bits(c.db1.values(), db1, "dx_sums");
}
TEST(Linear, AccumulatesItsWeights) {
  accumulates<double>();
  accumulates<float>();
  accumulates<bf16>();
}

// Each operation in plain loops, from the actual results of the one before. Every result is rounded
// to T if a separate operation would round it; weight gradients are in A. For double it is exact.
template <typename A, typename T>
class Plain {
 public:
  std::vector<A> pre, h, y, dpre, dx, dw1, db1, dw2, db2;

  explicit Plain(const Case<T>& c) : s_(c.s) {
    const Sizes& s = c.s;
    pre = forward(c.x, c.w1, c.b1);
    for (A value : has_gelu(s) ? values(c.pre) : pre) h.push_back(rounded(gelu(value)));
    y = forward(c.h, c.w2, c.b2);
    dpre = by_input(c.dy, c.w2);
    const std::vector<A> at = has_gelu(s) ? values(c.pre) : pre;
    for (size_t i = 0; i < dpre.size(); ++i) dpre[i] = rounded(dpre[i] * slope(at[i]));
    dx = by_input(c.dpre, c.w1);
    dw2 = by_weight(c.h, c.dy), db2 = by_bias(c.dy);
    dw1 = by_weight(c.x, c.dpre), db1 = by_bias(c.dpre);
  }

 private:
  static bool has_gelu(const Sizes& s) { return s.gelu != Gelu::none; }
  static A rounded(A value) {
    return std::is_same_v<A, double> ? value : static_cast<A>(static_cast<T>(value));
  }
  static std::vector<A> values(const Buffer<T>& buffer) {
    std::vector<A> all;
    for (T value : buffer.values()) all.push_back(static_cast<A>(value));
    return all;
  }
  // Of [rows, columns].
  static int64_t rows(const Buffer<T>& buffer) { return buffer.tensor.shape[0]; }
  static int64_t columns(const Buffer<T>& buffer) { return buffer.tensor.shape[1]; }

  static A inner(A v) {  // of the tanh form
    return static_cast<A>(0.7978845608028653559) * (v + static_cast<A>(0.044715) * v * v * v);
  }
  static A phi(A v) { return A(0.5) * (1 + std::erf(v / std::sqrt(A(2)))); }
  A gelu(A v) const {
    if (s_.gelu == Gelu::none) return v;
    return s_.gelu == Gelu::exact ? v * phi(v) : v / (1 + std::exp(-2 * inner(v)));
  }
  A slope(A v) const {
    if (s_.gelu == Gelu::none) return 1;
    if (s_.gelu == Gelu::exact)
      return phi(v) + v * std::exp(-v * v / 2) * static_cast<A>(0.3989422804014326779);
    const A part = 1 / (1 + std::exp(-2 * inner(v))), v2 = std::min(v * v, A(1e4));
    const A inner_slope =
        static_cast<A>(0.7978845608028653559) * (1 + static_cast<A>(3 * 0.044715) * v2);
    return part + 2 * std::clamp(v, A(-100), A(100)) * part * (1 - part) * inner_slope;
  }

  std::vector<A> forward(const Buffer<T>& x, const Buffer<T>& w, const Buffer<T>& b) const {
    const std::vector<A> xs = values(x), ws = values(w), bs = values(b);
    const int64_t I = columns(x), O = columns(w);
    std::vector<A> out;
    for (int64_t n = 0; n < rows(x); ++n)
      for (int64_t o = 0; o < O; ++o) {
        A sum = 0;
        for (int64_t i = 0; i < I; ++i) sum += xs[n * I + i] * ws[i * O + o];
        out.push_back(rounded(sum));
        if (s_.bias) out.back() = rounded(out.back() + bs[o]);
      }
    return out;
  }
  static std::vector<A> by_input(const Buffer<T>& dy, const Buffer<T>& w) {
    const std::vector<A> dys = values(dy), ws = values(w);
    const int64_t I = rows(w), O = columns(w);
    std::vector<A> out;
    for (int64_t n = 0; n < rows(dy); ++n)
      for (int64_t i = 0; i < I; ++i) {
        A sum = 0;
        for (int64_t o = 0; o < O; ++o) sum += dys[n * O + o] * ws[i * O + o];
        out.push_back(rounded(sum));
      }
    return out;
  }
  static std::vector<A> by_weight(const Buffer<T>& x, const Buffer<T>& dy) {
    const std::vector<A> xs = values(x), dys = values(dy);
    const int64_t I = columns(x), O = columns(dy);
    const bool tensor_cores =
        std::is_same_v<T, bf16> && device_under_test().kind() != DeviceKind::cpu;
    std::vector<A> out;
    for (int64_t i = 0; i < I; ++i)
      for (int64_t o = 0; o < O; ++o) {
        PlainSum<A> sum(tensor_cores);
        for (int64_t n = 0; n < rows(x); ++n) sum.add(xs[n * I + i] * dys[n * O + o]);
        out.push_back(sum.value());
      }
    return out;
  }
  static std::vector<A> by_bias(const Buffer<T>& dy) {
    const std::vector<A> dys = values(dy);
    std::vector<A> out(static_cast<size_t>(columns(dy)));
    for (size_t i = 0; i < dys.size(); ++i) out[i % out.size()] += dys[i];
    return out;
  }
  const Sizes& s_;
};

template <typename T>
void compare(const Sizes& s, double magnitude = 1, bool misaligned = false) {
  using A = Accumulator<T>;
  SCOPED_TRACE(fmt::format("{} x {} x {} x {} times {}", s.N, s.I, s.H, s.O, magnitude));
  Case<T> c(s, magnitude);
  if (misaligned) {
    misalign(c.x, c.w1, c.b1, c.w2, c.b2, c.dy, c.pre, c.h, c.y, c.dpre, c.dx, c.dw1, c.db1, c.dw2,
             c.db2);
  }
  c.forward();
  c.backward(false);
  const Plain<double, T> exact(c);
  const Plain<A, T> plain(c);
  if (c.has_gelu()) expect_close<T>(c.pre.values(), exact.pre, converted<T>(plain.pre), "pre");
  expect_close<T>(c.h.values(), exact.h, converted<T>(plain.h), "h");
  expect_close<T>(c.y.values(), exact.y, converted<T>(plain.y), "y");
  expect_close<T>(c.dpre.values(), exact.dpre, converted<T>(plain.dpre), "dpre");
  expect_close<T>(c.dx.values(), exact.dx, converted<T>(plain.dx), "dx");
  expect_close<A>(c.dw1.values(), exact.dw1, plain.dw1, "dw1");
  expect_close<A>(c.dw2.values(), exact.dw2, plain.dw2, "dw2");
  if (!s.bias) return;
  expect_close<A>(c.db1.values(), exact.db1, plain.db1, "db1");
  expect_close<A>(c.db2.values(), exact.db2, plain.db2, "db2");
}
TEST(Linear, ObeysTheToleranceRule) {
  for (const Sizes& s : kSizes) compare<float>(s), compare<bf16>(s);
  const Sizes tall{2048, 3, 11, 5, true, Gelu::tanh};
  compare<float>(tall), compare<bf16>(tall);
}
const Sizes kFew[] = {{5, 7, 13, 3, true, Gelu::exact}, {9, 16, 32, 8, true, Gelu::tanh}};
TEST(Linear, ObeysTheToleranceRuleAtAnyMagnitude) {
  for (const Sizes& s : kFew) {
    for (double magnitude : {1e-20, 1e-5, 50.0, 1e10})
      compare<float>(s, magnitude), compare<bf16>(s, magnitude);
  }
}
TEST(Linear, ObeysTheToleranceRuleWhereNothingIsAligned) {
  for (const Sizes& s : kFew) compare<float>(s, 1, true), compare<bf16>(s, 1, true);
}

template <typename T>
void compare_dbias() {
  using A = Accumulator<T>;
  constexpr int64_t kRows = 700, kColumns = 133;
  Buffer<T> x({kRows, 3}, random_values<T>(kRows * 3, 1)),
      w({3, kColumns}, random_values<T>(3 * kColumns, 2));
  Buffer<T> dy({kRows, kColumns}, random_values<T>(kRows * kColumns, 3));
  Buffer<A> dw({3, kColumns}), db({kColumns});
  LinearBackward a;  // no dx
  a.dweight_io = dw.tensor, a.dbias_o = db.tensor, a.dy_no = dy.tensor, a.x_ni = x.tensor;
  a.weight_io = w.tensor;
  run(ops<T>(), a);
  expect_column_sums<T>(db.values(), dy.values(), "dbias");
  std::vector<A> twice = db.values();
  for (A& sum : twice) sum *= 2;
  a.accumulate = true;
  run(ops<T>(), a);
  expect_same_bits(db.values(), twice, "added dbias");
}
TEST(Linear, BiasGradientObeysTheToleranceRule) {
  compare_dbias<float>();
  compare_dbias<bf16>();
}

template <typename T>
void fused_equals_unfused() {
  for (const Sizes& s : kSizes) {
    if (s.gelu == Gelu::none) continue;
    Case<T> c(s);
    run(ops<T>(), c.first());
    const std::vector<T> fused = c.h.values(), pre = c.pre.values();
    run(ops<T>(), GeluForward{c.h.tensor, c.pre.tensor, s.gelu});
    expect_same_bits(fused, c.h.values(), "gelu of the stored pre-activation");
    run(ops<T>(), c.first(false));
    expect_same_bits(fused, c.h.values(), "without keeping the pre-activation");
    LinearForward unfused = c.first(false);
    unfused.gelu = Gelu::none;
    run(ops<T>(), unfused);
    expect_same_bits(pre, c.h.values(), "pre-activation");
    // Backward: the gradient of the pre-activation is that of h, times gelu'.
    run(ops<T>(), c.first());
    c.backward(false);
    const std::vector<T> dpre = c.dpre.values();
    LinearBackward a;
    a.dx_ni = c.dpre.tensor, a.dweight_io = c.dw2.tensor, a.dy_no = c.dy.tensor;
    a.x_ni = c.h.tensor, a.weight_io = c.w2.tensor;
    run(ops<T>(), a);
    run(ops<T>(), GeluBackward{c.dpre.tensor, {}, c.dpre.tensor, c.pre.tensor, s.gelu});
    expect_same_bits(dpre, c.dpre.values(), "gelu backward");
  }
}
TEST(Linear, FusedGeluGivesTheBitsOfTheUnfused) {
  fused_equals_unfused<float>();
  fused_equals_unfused<bf16>();
  fused_equals_unfused<double>();
}

TEST(Linear, RefusesWrongShapes) {
  Case<float> c(kSizes[3]);
  LinearForward a = c.first();
  a.weight_io.shape = {c.s.H, c.s.I};
  EXPECT_THROW(run(ops<float>(), a), CheckError);
  EXPECT_THROW(ops<double>().run(Case<double>(kSizes[3]).first(), {}), CheckError);
  a = c.first();
  a.gelu = Gelu::none;  // with a pre-activation
  EXPECT_THROW(run(ops<float>(), a), CheckError);
  LinearBackward sums;  // of dx, without GELU
  sums.dx_ni = c.dpre.tensor, sums.dweight_io = c.dw2.tensor, sums.dy_no = c.dy.tensor;
  sums.x_ni = c.h.tensor, sums.weight_io = c.w2.tensor, sums.dx_sums_i = c.db1.tensor;
  EXPECT_THROW(run(ops<float>(), sums), CheckError);
}

}  // namespace
}  // namespace lathe::testing
