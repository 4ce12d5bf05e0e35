// Matrix products on the GPU against double, in every layout, and their plans.
#include "kernels/cuda/matmul.h"

#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/device/device.h"
#include "tests/cuda/device_memory.h"
#include "tests/ops/ops_testing.h"
#include "tests/tensor_cores.h"

namespace lathe::testing {
namespace {

using cuda::Matmul;
using cuda::MatmulArgs;
using cuda::MatmulOptions;
using cuda::MatmulPlanRecord;

constexpr MatmulOptions kUntuned{.autotune = false};

struct Sizes {
  int64_t m, n, k, padding = 0;  // padding: of every leading dimension
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false, bias = false;
  // Elements from an aligned address to a, b, c and the bias.
  size_t offset_a = 0, offset_b = 0, offset_c = 0, offset_bias = 0;
};

// One product with its operands, T to D.
template <typename T, typename D>
struct Case {
  Sizes s;
  int64_t rows_a, columns_a, rows_b, columns_b;
  DeviceArray<T> a, b;
  DeviceArray<D> out, bias;
  std::vector<T> a_values, b_values;
  std::vector<D> bias_values, out_before;
  Stream stream;

  explicit Case(const Sizes& sizes)
      : s(sizes),
        rows_a(s.transpose_a ? s.k : s.m),
        columns_a((s.transpose_a ? s.m : s.k) + s.padding),
        rows_b(s.transpose_b ? s.n : s.k),
        columns_b((s.transpose_b ? s.k : s.n) + s.padding),
        a(random_values<T>(rows_a * columns_a, 1), s.offset_a),
        b(random_values<T>(rows_b * columns_b, 2), s.offset_b),
        out(random_values<D>(s.m * (s.n + s.padding), 3), s.offset_c),
        bias(random_values<D>(s.n, 4), s.offset_bias),
        a_values(a.values()),
        b_values(b.values()),
        bias_values(bias.values()),
        out_before(out.values()) {}

  MatmulArgs args() const {
    MatmulArgs args;
    args.m = s.m, args.n = s.n, args.k = s.k;
    args.a = a.data(), args.b = b.data(), args.c = out.data();
    if (s.padding) args.lda = columns_a, args.ldb = columns_b, args.ldc = s.n + s.padding;
    if (s.bias) args.bias = bias.data();
    args.transpose_a = s.transpose_a, args.transpose_b = s.transpose_b;
    args.accumulate = s.accumulate;
    args.input = dtype_of<T>, args.output = dtype_of<D>;
    return args;
  }
  void run(Matmul& matmul) {
    static const Workspace workspace(Matmul::kWorkspaceBytes);  // large, so reused
    matmul.run(args(), workspace.tensor, stream);
    stream.wait();
  }

  template <typename A>
  A element_a(int64_t i, int64_t l) const {
    const int64_t at = s.transpose_a ? l * columns_a + i : i * columns_a + l;
    return static_cast<A>(a_values[static_cast<size_t>(at)]);
  }
  template <typename A>
  A element_b(int64_t l, int64_t j) const {
    const int64_t at = s.transpose_b ? j * columns_b + l : l * columns_b + j;
    return static_cast<A>(b_values[static_cast<size_t>(at)]);
  }
  // In A, rounded to R wherever a separate operation would round.
  template <typename A, typename R>
  std::vector<R> expected() const {
    std::vector<R> result;
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        PlainSum<A> sum(std::is_same_v<T, bf16>);
        for (int64_t l = 0; l < s.k; ++l) sum.add(element_a<A>(i, l) * element_b<A>(l, j));
        const auto old = static_cast<A>(out_before[static_cast<size_t>(i * (s.n + s.padding) + j)]);
        R value = static_cast<R>(sum.value());
        if (s.accumulate) value = static_cast<R>(static_cast<A>(value) + old);
        if (s.bias) {
          const A added = static_cast<A>(bias_values[static_cast<size_t>(j)]);
          value = static_cast<R>(static_cast<A>(value) + added);
        }
        result.push_back(value);
      }
    return result;
  }
  // EXPECTs the tolerance rule, and that nothing was written between the rows of c.
  void expect_right(const std::string& what) const {
    std::vector<D> inside;
    const std::vector<D> all = out.values();
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n + s.padding; ++j) {
        const auto at = static_cast<size_t>(i * (s.n + s.padding) + j);
        if (j < s.n) {
          inside.push_back(all[at]);
        } else {
          EXPECT_EQ(static_cast<float>(all[at]), static_cast<float>(out_before[at])) << what;
        }
      }
    expect_close<D>(inside, expected<double, double>(), expected<float, D>(), what);
  }
};

std::string describe(const Sizes& s) {
  return fmt::format("m {} n {} k {} padding {} {}{}{}{} offsets {} {} {} {}", s.m, s.n, s.k,
                     s.padding, s.transpose_a ? "t" : "n", s.transpose_b ? "t" : "n",
                     s.accumulate ? " accumulate" : "", s.bias ? " bias" : "", s.offset_a,
                     s.offset_b, s.offset_c, s.offset_bias);
}

template <typename T, typename D>
void compare(const Sizes& s, Matmul& matmul) {
  Case<T, D> c(s);
  c.run(matmul);
  c.expect_right(describe(s));
}

class MatmulTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

const Sizes kSizes[] = {{1, 1, 1},       {2, 7, 13},       {33, 65, 17},  {64, 48, 128},
                        {130, 200, 264}, {16, 24, 520, 8}, {5, 9, 70, 3}, {72, 40, 96, 16}};

template <typename T, typename D>
void all_layouts(Matmul& matmul) {
  for (Sizes s : kSizes)
    for (int variant = 0; variant < 8; ++variant) {
      s.transpose_a = variant & 1, s.transpose_b = variant & 2, s.accumulate = variant & 4;
      compare<T, D>(s, matmul);
    }
}
TEST_F(MatmulTest, AgreesWithDoubleOnAllLayouts) {
  Matmul matmul(kUntuned);
  all_layouts<float, float>(matmul);
  all_layouts<bf16, bf16>(matmul);
  all_layouts<bf16, float>(matmul);
}
TEST_F(MatmulTest, AgreesWithDoubleWhereItIsTuned) {
  Matmul matmul;
  all_layouts<bf16, bf16>(matmul);
}

// One at a time, and all: each affects which algorithms are available.
TEST_F(MatmulTest, ServesOperandsThatAreNotAligned) {
  Matmul matmul(kUntuned);
  for (Sizes s : kSizes)
    for (const unsigned which : {1, 2, 4, 8, 15}) {
      s.offset_a = which & 1, s.offset_b = which >> 1 & 1;
      s.offset_c = which >> 2 & 1, s.offset_bias = which >> 3 & 1;
      s.bias = true;
      compare<float, float>(s, matmul);
      compare<bf16, bf16>(s, matmul);
      s.bias = false;
      compare<bf16, float>(s, matmul);
    }
}

TEST_F(MatmulTest, AddsABias) {
  Matmul matmul(kUntuned);
  for (Sizes s : kSizes) {
    s.bias = true;
    compare<float, float>(s, matmul);
    compare<bf16, bf16>(s, matmul);
  }
}

TEST_F(MatmulTest, PlansComeBackAsTheyWere) {
  Sizes s{48, 64, 1024};
  s.bias = true;
  std::vector<MatmulPlanRecord> records;
  std::vector<bf16> first;
  {
    Matmul matmul;
    Case<bf16, bf16> c(s);
    c.run(matmul);
    first = c.out.values();
    records = matmul.plans();
    ASSERT_EQ(records.size(), 1u);
  }
  Matmul matmul;
  matmul.load_plans(records);
  EXPECT_EQ(matmul.plans(), records);  // even before the first call with its shape
  Case<bf16, bf16> c(s);
  c.run(matmul);
  expect_same_bits(first, c.out.values(), "by a loaded plan");
  EXPECT_EQ(matmul.plans(), records);
}

// The checksum reveals any damage before the library sees the plan.
TEST_F(MatmulTest, PassesOverPlansThatAreNone) {
  const Sizes s{48, 64, 256};
  std::vector<MatmulPlanRecord> good;
  {
    Matmul matmul(kUntuned);
    compare<bf16, bf16>(s, matmul);
    good = matmul.plans();
  }
  ASSERT_EQ(good.size(), 1u);
  const size_t version = cuda::load_cublaslt().get_version();
  EXPECT_TRUE(cuda::read_plan(good[0].shape, good[0].plan, version));
  EXPECT_FALSE(cuda::read_plan(good[0].shape, good[0].plan, version + 1));
  EXPECT_FALSE(cuda::read_plan(good[0].shape + " ", good[0].plan, version));
  std::vector<std::string> damaged = {"", "nonsense", "9" + good[0].plan, good[0].plan + " 0"};
  for (size_t at = 0; at < good[0].plan.size(); ++at) {
    damaged.push_back(good[0].plan.substr(0, at));
    damaged.push_back(good[0].plan);
    char& letter = damaged.back()[at];
    letter = letter == '1' ? '2' : '1';
  }
  for (const std::string& plan : damaged)
    EXPECT_FALSE(cuda::read_plan(good[0].shape, plan, version)) << plan;
  for (const std::string& plan : {damaged[1], damaged.back()}) {
    Matmul matmul(kUntuned);
    matmul.load_plans({{good[0].shape, plan}});
    compare<bf16, bf16>(s, matmul);
    EXPECT_EQ(matmul.plans(), good) << plan;
  }
}

// Trials run on a copy: c itself is added to once.
TEST_F(MatmulTest, AccumulatingIsTunedToo) {
  Sizes s{48, 64, 256};
  s.transpose_a = true;
  Matmul matmul;
  for (const bool accumulate : {true, false, true}) {
    s.accumulate = accumulate;
    compare<bf16, float>(s, matmul);
  }
  ASSERT_EQ(matmul.plans().size(), 2u);
  std::istringstream log(matmul.tuning_log());
  std::map<std::string, int> chosen;
  for (std::string line; std::getline(log, line);)
    chosen[line.substr(0, line.find('\t'))] += line.ends_with("chosen");
  ASSERT_EQ(chosen.size(), 2u) << matmul.tuning_log();
  for (const MatmulPlanRecord& record : matmul.plans()) EXPECT_EQ(chosen[record.shape], 1);
}

TEST_F(MatmulTest, IsCapturedIntoAGraph) {
  Sizes s{48, 64, 256};
  s.accumulate = true;
  Matmul matmul;
  Case<float, float> c(s);
  const Workspace workspace(Matmul::kWorkspaceBytes);
  MatmulArgs overwrite = c.args();
  overwrite.accumulate = false;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  const auto capture = [&] {
    cuda::check_cuda(cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal), "capture");
    matmul.run(overwrite, workspace.tensor, c.stream);
    matmul.run(c.args(), workspace.tensor, c.stream);
    cuda::check_cuda(cudaStreamEndCapture(c.stream, &graph), "capture");
  };
  EXPECT_THROW(capture(), CheckError);  // no plans yet
  cuda::check_cuda(cudaStreamEndCapture(c.stream, &graph), "capture");
  cudaGraphDestroy(graph);
  matmul.run(overwrite, workspace.tensor, c.stream);
  matmul.run(c.args(), workspace.tensor, c.stream);
  capture();
  cuda::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  for (int launch = 0; launch < 2; ++launch)
    cuda::check_cuda(cudaGraphLaunch(executable, c.stream), "graph");
  c.stream.wait();
  auto twice = c.template expected<double, double>();
  auto plain = c.template expected<float, float>();
  for (size_t i = 0; i < twice.size(); ++i) {
    const double product = twice[i] - static_cast<double>(c.out_before[i]);
    twice[i] = 2 * product;
    plain[i] = 2 * (plain[i] - c.out_before[i]);
  }
  expect_close<float>(c.out.values(), twice, plain, "two products by a graph");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(MatmulTest, TheSameBitsAgain) {
  Sizes s{40, 64, 2048};
  s.transpose_a = true;
  for (const MatmulOptions& options : {MatmulOptions{}, MatmulOptions{.deterministic = true}}) {
    Matmul matmul(options);
    Case<bf16, float> c(s);
    c.run(matmul);
    const auto first = c.out.values();
    c.run(matmul);
    expect_same_bits(first, c.out.values(), "c");
  }
}

TEST_F(MatmulTest, RefusesWhatItCannotDo) {
  Matmul matmul(kUntuned);
  const Case<bf16, float> c({8, 8, 8});
  const Workspace workspace(Matmul::kWorkspaceBytes);
  const auto refused = [&](const MatmulArgs& args) {
    EXPECT_THROW(matmul.run(args, workspace.tensor, c.stream), CheckError);
  };
  MatmulArgs args = c.args();
  args.k = 0;
  refused(args);
  args = c.args(), args.lda = 7;
  refused(args);
  args = c.args(), args.input = DType::fp32, args.output = DType::bf16;
  refused(args);
  args = c.args(), args.input = args.output = DType::fp64;
  refused(args);
  args = c.args(), args.bias = c.bias.data(), args.accumulate = true;
  refused(args);
  EXPECT_THROW(matmul.run(c.args(), workspace.tensor.rows(0, 100), c.stream), CheckError);
}

}  // namespace
}  // namespace lathe::testing
