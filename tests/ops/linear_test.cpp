#include "tests/ops/ops_testing.h"

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
  Buffer<T> x{{s.N, s.I}, random_values<T>(s.N* s.I, 1)};
  Buffer<T> w1{{s.I, s.H}, random_values<T>(s.I*s.H, 2, 0.5)}, b1{{s.H}, random_values<T>(s.H, 3)};
  Buffer<T> w2{{s.H, s.O}, random_values<T>(s.H*s.O, 4, 0.5)}, b2{{s.O}, random_values<T>(s.O, 5)};
  Buffer<T> dy{{s.N, s.O}, random_values<T>(s.N* s.O, 6)};
  Buffer<T> pre{{s.N, s.H}}, h{{s.N, s.H}}, y{{s.N, s.O}}, dpre{{s.N, s.H}}, dx{{s.N, s.I}};
  Buffer<A> dw1{{s.I, s.H}}, db1{{s.H}}, dw2{{s.H, s.O}}, db2{{s.O}};

  explicit Case(const Sizes& sizes) : s(sizes) {}
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
    run(ops<T>(), a);
    LinearBackward b;
    b.dx_ni = dx.tensor, b.dweight_io = dw1.tensor, b.dy_no = dpre.tensor, b.x_ni = x.tensor;
    b.weight_io = w1.tensor, b.accumulate = accumulate;
    if (s.bias) b.dbias_o = db1.tensor;
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
  std::vector<A> dw = c.dw1.values(), db = c.db2.values();
  c.backward(true);
  for (std::vector<A>* once : {&dw, &db})
    for (A& sum : *once) sum *= 2;
  expect_close<A>(c.dw1.values(), converted<double>(dw), dw, "dweight");
  expect_close<A>(c.db2.values(), converted<double>(db), db, "dbias");
}
TEST(Linear, AccumulatesItsWeights) {
  accumulates<double>();
  accumulates<float>();
  accumulates<bf16>();
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
  std::vector<A> plain(kColumns);
  std::vector<double> reference(kColumns);
  for (size_t i = 0; i < kRows * kColumns; ++i) {
    plain[i % kColumns] += static_cast<A>(dy.data()[i]);
    reference[i % kColumns] += static_cast<double>(dy.data()[i]);
  }
  expect_close<A>(db.values(), reference, plain, "dbias");
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
    run(ops<T>(), GeluBackward{c.dpre.tensor, c.dpre.tensor, c.pre.tensor, s.gelu});
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
  EXPECT_THROW(ops<double>().linear_forward(Case<double>(kSizes[3]).first(), {}), CheckError);
  a = c.first();
  a.gelu = Gelu::none;  // with a pre-activation
  EXPECT_THROW(run(ops<float>(), a), CheckError);
}

}  // namespace
}  // namespace lathe::testing
