// The calls of Matmul to cuBLASLt, seen from the library's side: with a plan nothing is rebuilt or
// allocated, the fastest candidate wins, and Matmul works around what the library cannot do.
#include <gtest/gtest.h>

#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "tests/allocations.h"
#include "tests/cuda/device_memory.h"

namespace lathe::testing {
namespace {

// Wraps the stand-in's functions: counts calls, and misbehaves as these members say.
struct Watched {
  int made = 0;  // descriptors, layouts, preferences
  int heuristics = 0;
  int products = 0;
  bool compute = true;     // false: only count the product
  bool biases = true;      // whether the epilogue that adds a bias finds algorithms
  bool algorithms = true;  // whether any are found
  uint64_t fast = 0;       // this algorithm is fast and all others slow; 0: no change
  uint64_t fails = 0;      // this algorithm is refused when it is run
  int slow_at_first = 0;   // the fast algorithm's first so many runs are slow, too
  int slow_products = 0;   // the first so many products take twice as long
  uint64_t unsteady = 0;   // this algorithm gives other bits each time
  int32_t schemes = 0;     // the scheme that split algorithms report; 0: the true one
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;  // the last one set
};
Watched watched;

uint64_t id_of(const cublasLtMatmulAlgo_t* algorithm) {
  return algorithm->data[1];
}

cublasStatus_t counting_create(cublasLtMatmulDesc_t* made, cublasComputeType_t compute,
                               cudaDataType scale) {
  ++watched.made;
  return cublasLtMatmulDescCreate(made, compute, scale);
}
cublasStatus_t watching_set(cublasLtMatmulDesc_t description,
                            cublasLtMatmulDescAttributes_t attribute, const void* value,
                            size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE) std::memcpy(&watched.epilogue, value, 4);
  return cublasLtMatmulDescSetAttribute(description, attribute, value, bytes);
}
cublasStatus_t counting_layout(cublasLtMatrixLayout_t* made, cudaDataType type, uint64_t rows,
                               uint64_t columns, int64_t ld) {
  ++watched.made;
  return cublasLtMatrixLayoutCreate(made, type, rows, columns, ld);
}
cublasStatus_t counting_preference(cublasLtMatmulPreference_t* made) {
  ++watched.made;
  return cublasLtMatmulPreferenceCreate(made);
}
cublasStatus_t watching_heuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                  cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                  cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                  cublasLtMatmulPreference_t preference, int wanted,
                                  cublasLtMatmulHeuristicResult_t results[], int* found) {
  ++watched.heuristics;
  *found = 0;
  if (!watched.algorithms) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!watched.biases && watched.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return cublasLtMatmulAlgoGetHeuristic(handle, description, a, b, c, d, preference, wanted,
                                        results, found);
}
cublasStatus_t watching_config(const cublasLtMatmulAlgo_t* algorithm,
                               cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                               size_t bytes, size_t* written) {
  const cublasStatus_t status =
      cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, value, bytes, written);
  int32_t scheme = 0;
  if (status != CUBLAS_STATUS_SUCCESS || bytes != sizeof(scheme)) return status;
  std::memcpy(&scheme, value, sizeof(scheme));
  if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME && watched.schemes != 0 && scheme != 0)
    std::memcpy(value, &watched.schemes, sizeof(scheme));
  return status;
}
cublasStatus_t watching_matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                               const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                               const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                               const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                               cublasLtMatrixLayout_t d_layout,
                               const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t bytes,
                               cudaStream_t stream) {
  ++watched.products;
  if (!watched.compute) return CUBLAS_STATUS_SUCCESS;
  if (watched.fails == id_of(algorithm)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (watched.slow_products > 0) {
    const double time = watched.products <= watched.slow_products ? 2e6 : 1e6;
    cuda_on_cpu::enqueue(stream, "clock", [time] { cuda_on_cpu::pretend_to_take(time); });
  }
  if ((watched.fast != 0 && watched.fast != id_of(algorithm)) ||
      (watched.fast == id_of(algorithm) && watched.slow_at_first-- > 0))
    cuda_on_cpu::enqueue(stream, "slow", [] { cuda_on_cpu::pretend_to_take(1e6); });
  const float factor = watched.unsteady == id_of(algorithm)
                           ? 1 + static_cast<float>(watched.products) / 1024
                           : *static_cast<const float*>(alpha);
  return cublasLtMatmul(handle, description, &factor, a, a_layout, b, b_layout, beta, c, c_layout,
                        d, d_layout, algorithm, workspace, bytes, stream);
}

}  // namespace
}  // namespace lathe::testing

// Replaces cublaslt_linked.cpp: with this definition the linker does not take it from the library.
lathe::cuda::CublasLt lathe::cuda::load_cublaslt() {
  return {cublasLtCreate,
          cublasLtDestroy,
          cublasLtGetVersion,
          cublasLtGetStatusString,
          testing::counting_create,
          cublasLtMatmulDescDestroy,
          testing::watching_set,
          testing::counting_layout,
          cublasLtMatrixLayoutDestroy,
          testing::counting_preference,
          cublasLtMatmulPreferenceDestroy,
          cublasLtMatmulPreferenceSetAttribute,
          testing::watching_heuristic,
          cublasLtMatmulAlgoCheck,
          testing::watching_config,
          testing::watching_matmul};
}

namespace lathe::testing {
namespace {

using cuda::Matmul;
using cuda::MatmulArgs;

// c = a b (+ bias) of ones and twos, [16, 1024] x [1024, 24], exact in any order of the sums.
class MatmulCalls : public ::testing::Test {
 protected:
  MatmulCalls()
      : a_(std::vector<__nv_bfloat16>(16 * 1024, __float2bfloat16_rn(1))),
        b_(std::vector<__nv_bfloat16>(1024 * 24, __float2bfloat16_rn(2))),
        bias_(std::vector<float>(24, 5.0f)),
        c_(16 * 24),
        workspace_(Matmul::kWorkspaceBytes) {
    watched = {};
    args_.m = 16, args_.n = 24, args_.k = 1024;
    args_.a = a_.data(), args_.b = b_.data(), args_.c = c_.data();
    args_.input = DType::bf16, args_.output = DType::fp32;
  }
  void run(Matmul& matmul) {
    matmul.run(args_, workspace_.tensor, stream_);
    stream_.wait();
  }
  void expect_all(const DeviceArray<float>& array, float value) {
    for (float element : array.values()) ASSERT_EQ(element, value);
  }
  // The number of the only plan's algorithm, and into how many parts it splits sums.
  static std::pair<uint64_t, uint64_t> algorithm_of(const Matmul& matmul) {
    const auto plans = matmul.plans();
    EXPECT_EQ(plans.size(), 1u);
    unsigned long long id = 0, splits = 0;
    EXPECT_EQ(std::sscanf(plans.at(0).plan.c_str(), "%*s %*s %*x %llx %llx", &id, &splits), 2);
    return {id, splits};
  }

  DeviceArray<__nv_bfloat16> a_, b_;
  DeviceArray<float> bias_, c_;
  Workspace workspace_;
  Stream stream_;
  MatmulArgs args_;
};

TEST_F(MatmulCalls, NothingIsRebuiltOrAllocatedOncePlanned) {
  for (const bool with_bias : {false, true}) {
    args_.bias = with_bias ? bias_.data() : nullptr;
    for (const bool autotune : {false, true}) {
      watched = {};
      Matmul matmul({.autotune = autotune});
      run(matmul);
      EXPECT_GE(watched.heuristics, 1);
      watched = {.compute = false};  // the stand-in's own allocations do not matter
      const size_t before = allocated_bytes();
      for (int i = 0; i < 3; ++i) matmul.run(args_, workspace_.tensor, stream_);
      EXPECT_EQ(allocated_bytes(), before);
      EXPECT_EQ(watched.products, 3);
      EXPECT_EQ(watched.made, 0);
      EXPECT_EQ(watched.heuristics, 0);
    }
  }
}

TEST_F(MatmulCalls, TheFastestCandidateWins) {
  for (const uint64_t fast : {1, 2, 3, 5}) {
    watched = {.fast = fast};
    Matmul matmul;
    run(matmul);
    expect_all(c_, 2048);
    EXPECT_EQ(algorithm_of(matmul).first, fast);
    const int products = watched.products;
    run(matmul);
    EXPECT_EQ(watched.products, products + 1);
  }
}

TEST_F(MatmulCalls, ACandidateThatFailsIsPassedOver) {
  watched = {.fast = 3, .fails = 3};
  Matmul matmul;
  run(matmul);
  expect_all(c_, 2048);
  EXPECT_NE(algorithm_of(matmul).first, 3u);
}

// For such a long k the heuristic prefers to split the sum, and to keep its parts in the type of c.
TEST_F(MatmulCalls, PartsOfASumMeetInFp32) {
  Matmul matmul({.autotune = false});
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).first, 5u);
}

TEST_F(MatmulCalls, PassesOverThePlansOfAnotherVersion) {
  std::vector<cuda::MatmulPlanRecord> records;
  {
    watched = {.fast = 2};
    Matmul matmul;
    run(matmul);
    records = matmul.plans();
  }
  for (const bool same_version : {true, false}) {
    watched = {};
    if (!same_version) records[0].plan = fmt::format("1{}", records[0].plan);
    Matmul matmul({.autotune = false});
    matmul.load_plans(records);
    run(matmul);
    EXPECT_EQ(algorithm_of(matmul).first, same_version ? 2u : 5u);
  }
}

// Accepts sums in parts that are added in order, if they give the same bits three times.
TEST_F(MatmulCalls, DeterministicSplitsWhatRepeatsAndMeasuresNothing) {
  for (const bool accumulate : {false, true}) {
    watched = {};
    args_.accumulate = accumulate;
    Matmul matmul({.deterministic = true});
    std::fill_n(c_.data(), 16 * 24, 1.0f);
    run(matmul);
    EXPECT_EQ(watched.products, 4);
    EXPECT_EQ(algorithm_of(matmul), (std::pair<uint64_t, uint64_t>{5, 4}));
    expect_all(c_, accumulate ? 2049 : 2048);
    EXPECT_EQ(matmul.tuning_log(), "");
  }
}

TEST_F(MatmulCalls, DeterministicPassesOverWhatDoesNotRepeat) {
  watched = {.unsteady = 5};
  Matmul matmul({.deterministic = true});
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).second, 1u);
  expect_all(c_, 2048);
}

// Parts that are added in place, in the order in which they finish.
TEST_F(MatmulCalls, DeterministicRefusesALoadedPlanOfNoFixedOrder) {
  watched = {.schemes = CUBLASLT_REDUCTION_SCHEME_INPLACE};
  std::vector<cuda::MatmulPlanRecord> records;
  {
    Matmul matmul({.autotune = false});
    run(matmul);
    records = matmul.plans();
    EXPECT_EQ(algorithm_of(matmul).first, 5u);
  }
  for (const bool deterministic : {false, true}) {
    Matmul matmul({.deterministic = deterministic});
    matmul.load_plans(records);
    run(matmul);
    EXPECT_EQ(algorithm_of(matmul).first == 5, !deterministic);
  }
}

// A shape that was planned before also uses a loaded plan.
TEST_F(MatmulCalls, LoadedPlansReplaceThoseAtHand) {
  std::vector<cuda::MatmulPlanRecord> records;
  {
    watched = {.fast = 3};
    Matmul matmul;
    run(matmul);
    records = matmul.plans();
  }
  watched = {.fast = 2};
  Matmul matmul;
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).first, 2u);
  matmul.load_plans(records);
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).first, 3u);
  EXPECT_EQ(matmul.plans(), records);
}

// The first run of an algorithm loads its kernel.
TEST_F(MatmulCalls, TheFirstRunOfACandidateDoesNotCount) {
  watched = {.fast = 3, .slow_at_first = 1};
  Matmul matmul;
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).first, 3u);
}

// A clock that rises while candidates are timed favours none of them.
TEST_F(MatmulCalls, CandidatesAreTimedInTurns) {
  watched = {.slow_products = 12};
  Matmul matmul;
  run(matmul);
  EXPECT_EQ(algorithm_of(matmul).first, 5u);  // the heuristic's first, because none is faster
  EXPECT_NE(matmul.tuning_log().find("\tchosen\n"), std::string::npos) << matmul.tuning_log();
}

TEST_F(MatmulCalls, ALoadedPlanIsNotMeasured) {
  std::vector<cuda::MatmulPlanRecord> records;
  {
    Matmul matmul;
    run(matmul);
    records = matmul.plans();
  }
  watched = {};
  Matmul matmul;
  matmul.load_plans(records);
  run(matmul);
  EXPECT_EQ(watched.heuristics, 0);
  EXPECT_EQ(watched.products, 1);
}

TEST_F(MatmulCalls, WithoutAnEpilogueABiasIsAddedAllTheSame) {
  for (const bool autotune : {false, true}) {
    watched = {.biases = false};
    Matmul matmul({.autotune = autotune});
    args_.bias = bias_.data();
    run(matmul);
    expect_all(c_, 2053);
  }
}

TEST_F(MatmulCalls, WithoutAnAlgorithmTheShapeIsNamed) {
  watched = {.algorithms = false};
  Matmul matmul;
  try {
    run(matmul);
    FAIL() << "nothing was thrown";
  } catch (const CheckError& error) {
    EXPECT_NE(std::string(error.what()).find("m 16 n 24 k 1024"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace lathe::testing
