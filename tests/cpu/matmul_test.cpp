#include "kernels/cpu/matmul.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/cpu/threads.h"
#include "kernels/device/error.h"
#include "tests/allocations.h"
#include "tests/tolerance.h"

namespace lathe::cpu {
namespace {

struct Size {
  int64_t m, n, k;
};
struct Epilogue {
  bool bias = false, accumulate = false, keep = false;
  Activation activation = Activation::none;
};

double gelu(Activation kind, double x) {
  if (kind == Activation::none) return x;
  if (kind == Activation::gelu_exact) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// One product with random operands and everything needed to judge the result.
template <typename T, typename TOut>
struct Problem {
  using Acc = Accumulator<T>;
  using Wider = std::conditional_t<std::is_same_v<T, double>, long double, double>;
  MatmulArgs<T, TOut> args;
  std::vector<T> a, b, bias;
  std::vector<TOut> start;
  std::vector<double> exact;  // op(A) op(B), dense
  std::vector<T> plain;       // the same, summed in order in Acc and rounded to T
  std::vector<Acc> plain_sum;

  Problem(Size size, bool transpose_a, bool transpose_b) {
    args.m = size.m, args.n = size.n, args.k = size.k;
    args.transpose_a = transpose_a, args.transpose_b = transpose_b;
    args.lda = (transpose_a ? size.m : size.k) + 3;
    args.ldb = (transpose_b ? size.k : size.n) + 5;
    args.ldc = size.n + 2;
    std::mt19937 generator(static_cast<unsigned>(size.m * 31 + size.n * 7 + size.k));
    fill(a, (transpose_a ? size.k : size.m) * args.lda, generator);
    fill(b, (transpose_b ? size.n : size.k) * args.ldb, generator);
    fill(bias, size.n, generator);
    fill(start, size.m * args.ldc, generator);
    args.a = a.data(), args.b = b.data();
    multiply();
  }

  template <typename V>
  static void fill(std::vector<V>& v, int64_t count, std::mt19937& generator) {
    std::normal_distribution<double> normal;
    v.resize(static_cast<size_t>(count));
    for (V& x : v) x = V(static_cast<Acc>(normal(generator)));
  }

  void multiply() {
    const auto [m, n, k] = std::tuple(args.m, args.n, args.k);
    exact.resize(static_cast<size_t>(m * n));
    plain_sum.resize(exact.size());
    std::vector<double> column(static_cast<size_t>(k));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) column[p] = static_cast<double>(b_at(p, j));
      for (int64_t i = 0; i < m; ++i) {
        Wider sum = 0;
        Acc same_type = 0;
        for (int64_t p = 0; p < k; ++p) {
          const Acc x =
              static_cast<Acc>(args.transpose_a ? a[p * args.lda + i] : a[i * args.lda + p]);
          sum += static_cast<Wider>(x) * column[p];
          same_type += x * static_cast<Acc>(column[p]);
        }
        exact[i * n + j] = static_cast<double>(sum), plain_sum[i * n + j] = same_type;
      }
    }
  }
  T b_at(int64_t p, int64_t j) const {
    return args.transpose_b ? b[j * args.ldb + p] : b[p * args.ldb + j];
  }

  template <typename V>
  static bool same_bits(const std::vector<V>& x, const std::vector<V>& y) {
    return x.size() == y.size() &&
           (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(V)) == 0);
  }
  struct Result {
    std::vector<TOut> c;
    std::vector<T> z;
    bool operator==(const Result& other) const {
      return same_bits(c, other.c) && same_bits(z, other.z);
    }
  };

  MatmulArgs<T, TOut> with(Epilogue epilogue, Result& result) const {
    MatmulArgs<T, TOut> x = args;
    result.c = start;
    result.z.assign(epilogue.keep ? start.size() : 0, T(Acc(7)));
    x.c = result.c.data();
    x.bias = epilogue.bias ? bias.data() : nullptr;
    x.accumulate = epilogue.accumulate;
    x.activation = epilogue.activation;
    x.pre_activation = epilogue.keep ? result.z.data() : nullptr;
    return x;
  }
  Result run(MatmulContext& context, Epilogue epilogue) const {
    Result result;
    context.run(with(epilogue, result));
    return result;
  }

  void expect_right(const Result& result, Epilogue e, const std::string& what) const {
    const int64_t n = args.n;
    std::vector<double> reference, reference_z;
    std::vector<TOut> actual, plain;
    std::vector<T> actual_z, plain_z;
    for (int64_t i = 0; i < args.m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const double z = exact[i * n + j] + (e.bias ? static_cast<double>(bias[j]) : 0);
        TOut y = TOut(plain_sum[i * n + j]);  // separate operations: product, bias, activation
        if (e.bias) y = TOut(static_cast<Acc>(y) + static_cast<Acc>(bias[j]));
        const double before = e.accumulate ? static_cast<double>(start[i * args.ldc + j]) : 0;
        reference.push_back(gelu(e.activation, z) + before);
        reference_z.push_back(z);
        plain_z.push_back(T(static_cast<Acc>(y)));
        if (e.activation != Activation::none)
          y = TOut(Acc(gelu(e.activation, static_cast<Acc>(y))));
        if (e.accumulate) y = TOut(static_cast<Acc>(y) + static_cast<Acc>(before));
        plain.push_back(y);
        actual.push_back(result.c[i * args.ldc + j]);
        if (e.keep) actual_z.push_back(result.z[i * args.ldc + j]);
      }
      for (int64_t j = n; j < args.ldc; ++j)  // the gap between rows is unchanged
        ASSERT_EQ(0,
                  std::memcmp(&result.c[i * args.ldc + j], &start[i * args.ldc + j], sizeof(TOut)));
    }
    testing::expect_close(actual, reference, plain, what);
    if (e.keep) testing::expect_close(actual_z, reference_z, plain_z, what + " pre-activation");
  }
};

template <typename T, typename TOut>
std::vector<Epilogue> epilogues() {
  std::vector<Epilogue> list = {{}, {.bias = true}};
  if (std::is_same_v<TOut, Accumulator<T>>) list.push_back({.accumulate = true});
  if (std::is_same_v<T, TOut>)
    for (Activation kind : {Activation::gelu_tanh, Activation::gelu_exact})
      for (bool keep : {false, true})
        list.push_back(
            {.bias = keep || kind == Activation::gelu_tanh, .keep = keep, .activation = kind});
  return list;
}

const Size kSizes[] = {{1, 1, 1},    {2, 17, 31},   {17, 1, 33},   {1, 130, 65},  {31, 2, 130},
                       {32, 32, 32}, {33, 65, 97},  {65, 33, 2},   {97, 130, 17}, {130, 97, 65},
                       {16, 48, 64}, {31, 64, 130}, {5, 200, 300}, {64, 31, 1},   {70, 130, 800}};

template <typename T, typename TOut>
void check_all(MatmulBackend backend, Size size) {
  MatmulContext context(backend);
  for (int layout = 0; layout < 4; ++layout) {
    const Problem<T, TOut> problem(size, layout & 1, layout & 2);
    for (const Epilogue& e : epilogues<T, TOut>()) {
      const std::string what = fmt::format(
          "{}x{}x{} transpose_a {} transpose_b {} bias {} accumulate {} activation {} keep {}",
          size.m, size.n, size.k, layout & 1, layout & 2, e.bias, e.accumulate,
          static_cast<int>(e.activation), e.keep);
      const auto result = problem.run(context, e);
      problem.expect_right(result, e, what);
      EXPECT_TRUE(result == problem.run(context, e)) << what << ": a second run differs";
    }
  }
}

class Matmul : public ::testing::TestWithParam<MatmulBackend> {
 protected:
  void SetUp() override {
    if (!matmul_backend_available(GetParam()))
      GTEST_SKIP() << "this machine or build has no such matmul";
  }
};
std::string backend_name(const ::testing::TestParamInfo<MatmulBackend>& info) {
  constexpr const char* kNames[] = {"automatic", "plain", "onednn", "amx"};
  return kNames[static_cast<int>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Backends, Matmul,
                         ::testing::Values(MatmulBackend::automatic, MatmulBackend::plain,
                                           MatmulBackend::onednn, MatmulBackend::amx),
                         backend_name);

TEST_P(Matmul, FloatIsRight) {
  for (Size size : kSizes) check_all<float, float>(GetParam(), size);
}
TEST_P(Matmul, Bf16IsRight) {
  for (Size size : kSizes) check_all<bf16, bf16>(GetParam(), size);
}
TEST_P(Matmul, Bf16WithFloatResultIsRight) {
  for (Size size : kSizes) check_all<bf16, float>(GetParam(), size);
}
TEST_P(Matmul, DoubleIsRight) {
  for (Size size : kSizes) check_all<double, double>(GetParam(), size);
}

// Sizes that are cut into several blocks in each direction.
TEST_P(Matmul, BlocksAreRight) {
  MatmulContext context(GetParam());
  for (Size size : {Size{40, 1100, 4200}, Size{1100, 70, 40}, Size{3, 70, 9000}}) {
    const Problem<bf16, bf16> half(size, false, true);
    half.expect_right(half.run(context, {.bias = true}), {.bias = true}, "bf16 blocks");
    const Problem<bf16, float> gradient(size, true, false);
    gradient.expect_right(gradient.run(context, {.accumulate = true}), {.accumulate = true}, "dw");
    const Problem<float, float> single(size, false, false);
    single.expect_right(single.run(context, {.bias = true}), {.bias = true}, "float blocks");
  }
}

// The bits do not depend on whether the pre-activation is kept, and C is its activation.
TEST_P(Matmul, ActivationReadsTheRoundedValue) {
  MatmulContext context(GetParam());
  const Problem<bf16, bf16> problem({65, 97, 130}, false, false);
  for (Activation kind : {Activation::gelu_tanh, Activation::gelu_exact}) {
    const auto kept = problem.run(context, {.bias = true, .keep = true, .activation = kind});
    const auto fused = problem.run(context, {.bias = true, .activation = kind});
    const auto linear = problem.run(context, {.bias = true});
    EXPECT_EQ(0, std::memcmp(kept.c.data(), fused.c.data(), kept.c.size() * sizeof(bf16)));
    for (int64_t i = 0; i < problem.args.m; ++i)
      EXPECT_EQ(0, std::memcmp(&kept.z[i * problem.args.ldc], &linear.c[i * problem.args.ldc],
                               problem.args.n * sizeof(bf16)));
  }
}

TEST_P(Matmul, SecondCallAllocatesNothing) {
  MatmulContext context(GetParam());
  const Problem<bf16, bf16> half({65, 97, 130}, false, true);
  const Problem<float, float> single({65, 97, 130}, true, false);
  typename Problem<bf16, bf16>::Result half_result;
  typename Problem<float, float>::Result single_result;
  const auto x = half.with({.bias = true}, half_result);
  const auto y = single.with({.accumulate = true}, single_result);
  context.run(x), context.run(y);
  const size_t owned = context.owned_workspace_bytes(), before = testing::allocated_bytes();
  context.run(x), context.run(y);
  EXPECT_EQ(owned, context.owned_workspace_bytes());
  // oneDNN allocates bookkeeping during an execution; all others must allocate nothing.
  const size_t allowance = context.backend_for(y) == MatmulBackend::onednn ? 8192 : 0;
  EXPECT_LE(testing::allocated_bytes() - before, allowance);
}

TEST_P(Matmul, WorkspaceIsExactlyWhatWasAskedFor) {
  MatmulContext own(GetParam()), lent(GetParam());
  const Problem<bf16, bf16> problem({65, 97, 530}, true, true);
  Problem<bf16, bf16>::Result expected = problem.run(own, {}), result;
  const auto x = problem.with({}, result);
  const size_t bytes = lent.workspace_bytes(x), rounded = (bytes + 127) / 64 * 64;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(64, rounded));
  std::memset(memory, 0xa5, rounded);
  lent.lend_workspace(memory, bytes);
  lent.run(x);
  EXPECT_TRUE(result == expected);
  for (size_t i = bytes; i < rounded; ++i) ASSERT_EQ(memory[i], 0xa5) << "overrun at " << i - bytes;
  EXPECT_EQ(lent.owned_workspace_bytes(), 0u);
  if (bytes > 0) {
    lent.lend_workspace(memory, bytes - 1);
    EXPECT_THROW(lent.run(x), CheckError);
  }
  std::free(memory);
}

// Plain code and AMX promise the same bits for any number of threads.
TEST_P(Matmul, ThreadsDoNotChangeTheBits) {
  MatmulContext context(GetParam());
  const Problem<bf16, bf16> half({200, 97, 530}, false, false);
  const Problem<float, float> single({200, 97, 530}, false, false);
  const Problem<bf16, bf16>::Result half_expected = half.run(context, {});
  const Problem<float, float>::Result single_expected = single.run(context, {});
  const int usual = max_threads();
  for (int threads : {1, 3, 4}) {
    set_max_threads(threads);
    if (context.backend_for(half.args) != MatmulBackend::onednn) {
      EXPECT_TRUE(half.run(context, {}) == half_expected) << threads;
    }
    if (context.backend_for(single.args) != MatmulBackend::onednn) {
      EXPECT_TRUE(single.run(context, {}) == single_expected) << threads;
    }
  }
  set_max_threads(usual);
}

TEST_P(Matmul, NotANumberStaysOne) {
  MatmulContext context(GetParam());
  Problem<bf16, bf16> problem({33, 40, 50}, false, false);
  problem.a[5 * problem.args.lda + 7] = bf16(NAN);
  const auto result = problem.run(context, {.keep = true, .activation = Activation::gelu_tanh});
  for (int64_t i = 0; i < 33; ++i)
    for (int64_t j = 0; j < 40; ++j)
      ASSERT_EQ(std::isnan(float(result.c[i * problem.args.ldc + j])), i == 5) << i << " " << j;
}

TEST_P(Matmul, EmptyProducts) {
  MatmulContext context(GetParam());
  const Problem<float, float> no_sum({3, 4, 0}, false, false);
  no_sum.expect_right(no_sum.run(context, {.bias = true}), {.bias = true}, "k = 0");
  const Problem<float, float> no_rows({0, 4, 5}, false, false);
  no_rows.run(context, {});
}

TEST(MatmulArguments, AreChecked) {
  MatmulContext context;
  float values[16] = {};
  MatmulArgs<float, float> x{.m = 2,
                             .n = 2,
                             .k = 2,
                             .a = values,
                             .lda = 2,
                             .b = values,
                             .ldb = 2,
                             .c = values + 8,
                             .ldc = 2};
  EXPECT_NO_THROW(context.run(x));
  for (int64_t MatmulArgs<float, float>::*field :
       {&MatmulArgs<float, float>::lda, &MatmulArgs<float, float>::ldb,
        &MatmulArgs<float, float>::ldc}) {
    auto bad = x;
    bad.*field = 1;
    EXPECT_THROW(context.run(bad), CheckError);
  }
  auto bad = x;
  bad.accumulate = true, bad.activation = Activation::gelu_tanh;
  EXPECT_THROW(context.run(bad), CheckError);
  EXPECT_FALSE(matmul_backend_name().empty());
}

}  // namespace
}  // namespace lathe::cpu
