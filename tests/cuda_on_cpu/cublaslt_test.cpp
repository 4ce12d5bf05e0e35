// The stand-in for cuBLASLt is strict: it refuses what the real library refuses, and what that
// would silently get wrong.
#include <cublasLt.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/cuda_on_cpu/runtime.h"
#include "tests/cuda/device_memory.h"

namespace lathe::testing {
namespace {

constexpr size_t kWorkspace = size_t{8} << 20;

// A correct product of column-major [m, k] and [k, n], which tests then spoil.
class CublasLtTest : public ::testing::Test {
 protected:
  CublasLtTest() : a_(m_ * k_), b_(k_ * n_), d_(m_ * n_), workspace_(kWorkspace) {
    std::fill_n(a_.data(), m_ * k_, __float2bfloat16_rn(1));
    std::fill_n(b_.data(), k_ * n_, __float2bfloat16_rn(2));
    EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulPreferenceCreate(&preference_);
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
    a_layout_ = layout(CUDA_R_16BF, m_, k_, m_);
    b_layout_ = layout(CUDA_R_16BF, k_, n_, k_);
    d_layout_ = layout(CUDA_R_32F, m_, n_, m_);
  }
  ~CublasLtTest() override {
    for (cublasLtMatrixLayout_t made : layouts_) cublasLtMatrixLayoutDestroy(made);
    cublasLtMatmulPreferenceDestroy(preference_);
    cublasLtMatmulDescDestroy(description_);
    if (handle_) cublasLtDestroy(handle_);
  }

  cublasLtMatrixLayout_t layout(cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld) {
    cublasLtMatrixLayout_t made = nullptr;
    EXPECT_EQ(cublasLtMatrixLayoutCreate(&made, type, rows, columns, ld), CUBLAS_STATUS_SUCCESS);
    layouts_.push_back(made);
    return made;
  }
  template <typename Value>
  cublasStatus_t set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    return cublasLtMatmulDescSetAttribute(description_, attribute, &value, sizeof(value));
  }
  template <typename Value>
  void prefer(cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  std::vector<cublasLtMatmulHeuristicResult_t> heuristic() {
    std::vector<cublasLtMatmulHeuristicResult_t> results(8);
    int found = 0;
    status_ = cublasLtMatmulAlgoGetHeuristic(handle_, description_, a_layout_, b_layout_, d_layout_,
                                             d_layout_, preference_, 8, results.data(), &found);
    results.resize(static_cast<size_t>(found));
    return results;
  }
  cublasStatus_t multiply(const cublasLtMatmulAlgo_t& algorithm, void* d = nullptr,
                          size_t workspace = kWorkspace) {
    const float one = 1, zero = 0;
    void* const to = d ? d : d_.data();
    return cublasLtMatmul(handle_, description_, &one, a_.data(), a_layout_, b_.data(), b_layout_,
                          &zero, to, d_layout_, to, d_layout_, &algorithm, workspace_.data(),
                          workspace, stream_);
  }
  static uint32_t config(const cublasLtMatmulAlgo_t& algorithm,
                         cublasLtMatmulAlgoConfigAttributes_t attribute) {
    uint32_t value = 0;
    size_t written = 0;
    EXPECT_EQ(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value),
                                                   &written),
              CUBLAS_STATUS_SUCCESS);
    return value;
  }

  static constexpr size_t m_ = 32, n_ = 24, k_ = 512;
  DeviceArray<__nv_bfloat16> a_, b_;
  DeviceArray<float> d_;
  DeviceArray<uint8_t> workspace_;
  Stream stream_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatrixLayout_t a_layout_ = nullptr, b_layout_ = nullptr, d_layout_ = nullptr;
  std::vector<cublasLtMatrixLayout_t> layouts_;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

TEST_F(CublasLtTest, MultipliesWhenTheStreamIsWaitedFor) {
  cuda_on_cpu::set_seed(1);
  for (const auto& candidate : heuristic()) {
    std::fill_n(d_.data(), m_ * n_, 0.0f);
    EXPECT_EQ(multiply(candidate.algo), CUBLAS_STATUS_SUCCESS);
    stream_.wait();
    for (float value : d_.values()) ASSERT_EQ(value, 2.0f * k_);
  }
}

TEST_F(CublasLtTest, AlgorithmsDifferInTheirSums) {
  for (size_t i = 0; i < m_ * k_; ++i)
    a_.data()[i] = __float2bfloat16_rn(static_cast<float>(i * i % 1009) / 1000 - 0.5f);
  for (size_t i = 0; i < k_ * n_; ++i)
    b_.data()[i] = __float2bfloat16_rn(static_cast<float>(i * i % 997) / 1000 - 0.5f);
  std::vector<std::vector<float>> results;
  for (const auto& candidate : heuristic()) {
    if (config(candidate.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1) continue;
    EXPECT_EQ(multiply(candidate.algo), CUBLAS_STATUS_SUCCESS);
    stream_.wait();
    for (const auto& other : results) EXPECT_TRUE(other != d_.values());
    results.push_back(d_.values());
  }
  EXPECT_GE(results.size(), 3u);
}

TEST_F(CublasLtTest, OverwritesTheWorkspaceItAskedFor) {
  const auto candidate = heuristic().at(0);
  std::fill_n(workspace_.data(), kWorkspace, uint8_t{1});
  EXPECT_EQ(multiply(candidate.algo), CUBLAS_STATUS_SUCCESS);
  stream_.wait();
  for (size_t i = 0; i < candidate.workspaceSize; i += 64)
    ASSERT_NE(workspace_.data()[i] + workspace_.data()[i + 1], 2) << i;
  for (size_t i = candidate.workspaceSize; i < kWorkspace; ++i) ASSERT_EQ(workspace_.data()[i], 1);
}

TEST_F(CublasLtTest, RefusesTooLittleWorkspace) {
  for (const auto& candidate : heuristic()) {
    ASSERT_GT(candidate.workspaceSize, 0u);
    EXPECT_EQ(multiply(candidate.algo, nullptr, candidate.workspaceSize - 1),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(multiply(candidate.algo, nullptr, candidate.workspaceSize), CUBLAS_STATUS_SUCCESS);
  }
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0});
  EXPECT_TRUE(heuristic().empty());
}

TEST_F(CublasLtTest, RefusesLayoutsThatDoNotFit) {
  const cublasLtMatmulAlgo_t algorithm = heuristic().at(0).algo;
  const auto spoilt = [&](cublasLtMatrixLayout_t& which, cublasLtMatrixLayout_t with) {
    const cublasLtMatrixLayout_t good = std::exchange(which, with);
    EXPECT_TRUE(heuristic().empty());
    EXPECT_NE(status_, CUBLAS_STATUS_SUCCESS);
    EXPECT_NE(multiply(algorithm), CUBLAS_STATUS_SUCCESS);
    which = good;
  };
  spoilt(a_layout_, layout(CUDA_R_16BF, m_, k_, m_ - 1));     // rows overlap
  spoilt(a_layout_, layout(CUDA_R_16BF, m_, k_ - 8, m_));     // another k
  spoilt(b_layout_, layout(CUDA_R_16BF, n_, k_, n_));         // transposed without the attribute
  spoilt(d_layout_, layout(CUDA_R_32F, m_, n_ + 1, m_));      // another n
  spoilt(d_layout_, layout(CUDA_R_32F, 0, 0, 0));             // nothing
  a_layout_ = layout(CUDA_R_16BF, m_, k_, int64_t{1} << 40);  // beyond the allocation
  EXPECT_NE(multiply(algorithm), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasLtTest, RefusesTypesThatTheRealOneLacks) {
  const auto refused = [&](cudaDataType a, cudaDataType b, cudaDataType d) {
    a_layout_ = layout(a, m_, k_, m_), b_layout_ = layout(b, k_, n_, k_);
    d_layout_ = layout(d, m_, n_, m_);
    return heuristic().empty() && status_ == CUBLAS_STATUS_NOT_SUPPORTED;
  };
  EXPECT_TRUE(refused(CUDA_R_32F, CUDA_R_16BF, CUDA_R_32F));
  EXPECT_TRUE(refused(CUDA_R_32F, CUDA_R_32F, CUDA_R_16BF));
  EXPECT_TRUE(refused(CUDA_R_64F, CUDA_R_64F, CUDA_R_64F));
  EXPECT_FALSE(refused(CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF));
  EXPECT_FALSE(refused(CUDA_R_32F, CUDA_R_32F, CUDA_R_32F));
}

TEST_F(CublasLtTest, RefusesTF32OfBf16) {
  cublasLtMatmulDescDestroy(description_);
  cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F);
  EXPECT_TRUE(heuristic().empty());
}

TEST_F(CublasLtTest, FiltersAlgorithmsByAlignmentAndReduction) {
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  bool split = false;
  for (const auto& candidate : heuristic()) {
    const uint32_t scheme = config(candidate.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    EXPECT_NE(scheme, uint32_t{CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE});
    split |= scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  }
  EXPECT_TRUE(split);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  const auto unsplit = heuristic();
  EXPECT_GE(unsplit.size(), 2u);
  for (const auto& candidate : unsplit)
    EXPECT_EQ(config(candidate.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM), 1u);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{4});
  EXPECT_EQ(heuristic().size(), 1u);
}

TEST_F(CublasLtTest, RefusesPointersThatAreNotAlignedAsPromised) {
  DeviceArray<float> unaligned(m_ * n_, 1);
  EXPECT_EQ(multiply(heuristic().at(0).algo, unaligned.data()), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(CublasLtTest, RefusesMemoryThatIsNotTheDevices) {
  std::vector<float> host(m_ * n_ + 64);
  auto* aligned =
      reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(host.data()) + 15) / 16 * 16);
  EXPECT_EQ(multiply(heuristic().at(0).algo, aligned), CUBLAS_STATUS_EXECUTION_FAILED);
  DeviceArray<float> small(m_ * n_ - 1);
  EXPECT_EQ(multiply(heuristic().at(0).algo, small.data()), CUBLAS_STATUS_EXECUTION_FAILED);
}

TEST_F(CublasLtTest, RefusesToOverwriteWhatItReads) {
  EXPECT_EQ(multiply(heuristic().at(0).algo, a_.data()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(heuristic().at(0).algo, workspace_.data()), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLtTest, RefusesEpiloguesThatAreNotSetUp) {
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS});
  const cublasLtMatmulAlgo_t algorithm = heuristic().at(0).algo;
  EXPECT_EQ(multiply(algorithm), CUBLAS_STATUS_INVALID_VALUE);  // no pointer
  DeviceArray<float> vector(m_ + 4, 1);
  void* pointer = vector.data();
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointer);
  EXPECT_NE(multiply(algorithm), CUBLAS_STATUS_SUCCESS);  // not aligned
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_16BF});
  EXPECT_TRUE(heuristic().empty());  // not D's type
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F});
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_GELU});
  EXPECT_TRUE(heuristic().empty());
}

TEST_F(CublasLtTest, RefusesBytesThatAreNoAlgorithm) {
  cublasLtMatmulAlgo_t algorithm = heuristic().at(0).algo;
  ++algorithm.data[2];
  cublasLtMatmulHeuristicResult_t result{};
  EXPECT_NE(cublasLtMatmulAlgoCheck(handle_, description_, a_layout_, b_layout_, d_layout_,
                                    d_layout_, &algorithm, &result),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_NE(multiply(algorithm), CUBLAS_STATUS_SUCCESS);
  EXPECT_NE(multiply({}), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasLtTest, RefusesADeadHandle) {
  const cublasLtMatmulAlgo_t algorithm = heuristic().at(0).algo;
  cublasLtDestroy(std::exchange(handle_, nullptr));
  EXPECT_EQ(multiply(algorithm), CUBLAS_STATUS_NOT_INITIALIZED);
}

// If the real library is installed, it accepts the same sizes for each attribute that lathe sets.
// This needs no GPU.
TEST(CublasLt, AttributesHaveTheSizesOfTheRealLibrary) {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen(("/usr/local/cuda/lib64/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) GTEST_SKIP() << "no " << name;
  const auto create = reinterpret_cast<decltype(&cublasLtMatmulDescCreate)>(
      dlsym(library, "cublasLtMatmulDescCreate"));
  const auto set = reinterpret_cast<decltype(&cublasLtMatmulDescSetAttribute)>(
      dlsym(library, "cublasLtMatmulDescSetAttribute"));
  const auto destroy = reinterpret_cast<decltype(&cublasLtMatmulDescDestroy)>(
      dlsym(library, "cublasLtMatmulDescDestroy"));
  const auto create_preference = reinterpret_cast<decltype(&cublasLtMatmulPreferenceCreate)>(
      dlsym(library, "cublasLtMatmulPreferenceCreate"));
  const auto set_preference = reinterpret_cast<decltype(&cublasLtMatmulPreferenceSetAttribute)>(
      dlsym(library, "cublasLtMatmulPreferenceSetAttribute"));
  const auto destroy_preference = reinterpret_cast<decltype(&cublasLtMatmulPreferenceDestroy)>(
      dlsym(library, "cublasLtMatmulPreferenceDestroy"));
  cublasLtMatmulDesc_t real = nullptr, ours = nullptr;
  create(&real, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatmulDescCreate(&ours, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatmulPreference_t real_preference = nullptr, our_preference = nullptr;
  create_preference(&real_preference);
  cublasLtMatmulPreferenceCreate(&our_preference);
  const uint64_t value[2] = {1, 0};
  for (const size_t bytes : {1, 2, 4, 8, 16}) {
    for (const auto attribute :
         {CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE,
          CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE})
      EXPECT_EQ(cublasLtMatmulDescSetAttribute(ours, attribute, value, bytes),
                set(real, attribute, value, bytes))
          << attribute << ", " << bytes << " bytes";
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(our_preference, attribute, value, bytes),
                set_preference(real_preference, attribute, value, bytes))
          << attribute << ", " << bytes << " bytes";
  }
  destroy(real);
  destroy_preference(real_preference);
  cublasLtMatmulDescDestroy(ours);
  cublasLtMatmulPreferenceDestroy(our_preference);
}

}  // namespace
}  // namespace lathe::testing
