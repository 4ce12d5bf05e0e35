// Matrix products by cuBLASLt.
//
// Layout: cuBLASLt is column-major. A row-major matrix [r, c] has the memory of the column-major
// matrix [c, r], its transpose. So instead of c = a b we request c' = b' a': cuBLASLt's A is our b,
// its B our a, its D has n rows and m columns, and nothing is ever transposed in memory. Its
// vectors along the rows of D, such as the bias, have n elements.
//
// Epilogues. The library adds the bias, in fp32 before the one rounding. If it cannot (the bias is
// not aligned to 16 bytes), c is filled with the bias and the product added, which also rounds
// once. Epilogues that sum a bias' gradient are not used: the operation that computes dy has summed
// it already. Nor are GELU epilogues: they apply GELU (only the tanh form) to the unrounded sum,
// but the contract of LinearForward needs GELU of the rounded pre-activation, so that fused,
// unfused and recomputed results have the same bits. GELU is a kernel of its own.
//
// Sums that are split over k must be added in fp32. Of cuBLASLt's reduction schemes only
// COMPUTE_TYPE is allowed: the others keep partial sums in the type of c, or add them in any order.
#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <unordered_map>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/matmul_tuning.h"

namespace lathe::cuda {

namespace {

constexpr int kCandidates = 32;

cudaDataType_t cuda_type(DType dtype) {
  LATHE_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "product in {}", name_of(dtype));
  return dtype == DType::fp32 ? CUDA_R_32F : CUDA_R_16BF;
}

using Description =
    std::unique_ptr<cublasLtMatmulDescOpaque_t, decltype(&cublasLtMatmulDescDestroy)>;
using Layout =
    std::unique_ptr<cublasLtMatrixLayoutOpaque_t, decltype(&cublasLtMatrixLayoutDestroy)>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(&cublasLtMatmulPreferenceDestroy)>;

// The plan of one shape. The names of the operands are ours, not cuBLASLt's.
struct MatmulPlan {
  Description description;
  Layout a, b, c;
  MatmulChoice choice;
};

void check(const MatmulArgs& args) {
  LATHE_CHECK(args.m > 0 && args.n > 0 && args.k > 0, "[{}, {}] x [{}, {}]", args.m, args.k, args.k,
              args.n);
  LATHE_CHECK(args.c && args.a && args.b);
  LATHE_CHECK(args.ldc >= args.n && args.lda >= (args.transpose_a ? args.m : args.k) &&
                  args.ldb >= (args.transpose_b ? args.k : args.n),
              "leading dimensions {}, {}, {} of [{}, {}] x [{}, {}]", args.ldc, args.lda, args.ldb,
              args.m, args.k, args.k, args.n);
  LATHE_CHECK(
      args.input == args.output || (args.input == DType::bf16 && args.output == DType::fp32),
      "product of {} in {}", name_of(args.input), name_of(args.output));
  LATHE_CHECK(!args.bias || !args.accumulate);
}

MatmulArgs dense(MatmulArgs args) {
  if (args.ldc == 0) args.ldc = args.n;
  if (args.lda == 0) args.lda = args.transpose_a ? args.m : args.k;
  if (args.ldb == 0) args.ldb = args.transpose_b ? args.k : args.n;
  return args;
}

}  // namespace

struct Matmul::Impl {
  explicit Impl(const MatmulOptions& wanted) : options(wanted), lt(load_cublaslt()) {
    LATHE_CHECK(options.alignment >= kLeastAlignment && options.alignment <= 256 &&
                    std::has_single_bit(options.alignment),
                "alignment {}", options.alignment);
    check_status(lt.create(&handle), "cublasLtCreate");
    version = lt.get_version();
  }
  ~Impl() {
    plans.clear();
    lt.destroy(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void check_status(cublasStatus_t status, const char* what) const {
    if (status != CUBLAS_STATUS_SUCCESS)
      throw CheckError(fmt::format("cuBLASLt: {}: {}", what, lt.get_status_string(status)));
  }
  template <typename Value>
  void set(MatmulPlan& plan, cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
    check_status(
        lt.matmul_desc_set_attribute(plan.description.get(), attribute, &value, sizeof value),
        "attribute of a product");
  }
  template <typename Value>
  void set(Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
           const Value& value) const {
    check_status(lt.preference_set_attribute(preference.get(), attribute, &value, sizeof value),
                 "preference");
  }

  Layout make_layout(DType dtype, int64_t rows, int64_t columns, int64_t ld) const {
    cublasLtMatrixLayout_t layout = nullptr;
    check_status(lt.matrix_layout_create(&layout, cuda_type(dtype), static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(columns), ld),
                 "layout");
    return Layout(layout, lt.matrix_layout_destroy);
  }
  // Descriptors, without an algorithm, of the column-major transposes.
  MatmulPlan describe(const MatmulKey& key) const;
  void set_choice(MatmulPlan& plan, const MatmulKey& key, const MatmulChoice& choice) const;
  void set_vector(MatmulPlan& plan, const void* vector) const {
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
  }

  Preference preference(const MatmulKey& key) const;
  // A number in an algorithm's configuration; 0 if the library does not return it.
  int32_t config_of(const cublasLtMatmulAlgo_t& algorithm,
                    cublasLtMatmulAlgoConfigAttributes_t attribute) const;
  bool has_fixed_order(const cublasLtMatmulAlgo_t& algorithm) const;
  // The heuristic's algorithms with or without an epilogue, likeliest first, and its status.
  struct Candidates {
    cublasStatus_t status;
    std::vector<MatmulChoice> choices;
  };
  Candidates candidates(MatmulPlan& plan, const MatmulKey& key, bool fused, int count) const;

  std::string name(const MatmulKey& key) const { return to_string(key, options.tf32); }
  MatmulPlan& plan_of(const MatmulKey& key, const MatmulArgs& args, const Tensor& workspace,
                      cudaStream_t stream);
  bool take_loaded(MatmulPlan& plan, const MatmulKey& key) const;
  void choose(MatmulPlan& plan, const MatmulKey& key, const MatmulArgs& args,
              const Tensor& workspace, cudaStream_t stream) const;
  void tune(MatmulPlan& plan, const MatmulKey& key, const MatmulArgs& args, const Tensor& workspace,
            cudaStream_t stream);
  void log_tuning(const MatmulKey& key, const std::vector<MatmulCandidate>& tried, size_t chosen);

  cublasStatus_t enqueue(MatmulPlan& plan, const MatmulArgs& args, const Tensor& workspace,
                         cudaStream_t stream) const;

  MatmulOptions options;
  CublasLt lt;
  cublasLtHandle_t handle = nullptr;
  size_t version = 0;
  MatmulTuner tuner;
  std::unordered_map<MatmulKey, MatmulPlan, MatmulKeyHash> plans;
  std::map<std::string, std::string> loaded;  // by shape
  std::string log;
};

MatmulPlan Matmul::Impl::describe(const MatmulKey& key) const {
  const bool tf32 = options.tf32 && key.input == DType::fp32;
  cublasLtMatmulDesc_t description = nullptr;
  check_status(
      lt.matmul_desc_create(&description, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                            CUDA_R_32F),
      "descriptor");
  MatmulPlan plan{Description(description, lt.matmul_desc_destroy),
                  make_layout(key.input, key.transpose_a ? key.m : key.k,
                              key.transpose_a ? key.k : key.m, key.lda),
                  make_layout(key.input, key.transpose_b ? key.k : key.n,
                              key.transpose_b ? key.n : key.k, key.ldb),
                  make_layout(key.output, key.n, key.m, key.ldc)};
  const int32_t first = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int32_t second = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, second);
  return plan;
}

void Matmul::Impl::set_choice(MatmulPlan& plan, const MatmulKey& key,
                              const MatmulChoice& choice) const {
  const uint32_t epilogue = choice.fused ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (choice.fused) {
    const int32_t type = cuda_type(key.output);
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  }
  plan.choice = choice;
}

Preference Matmul::Impl::preference(const MatmulKey& key) const {
  cublasLtMatmulPreference_t made = nullptr;
  check_status(lt.preference_create(&made), "preference");
  Preference preference(made, lt.preference_destroy);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_c));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_c));
  return preference;
}

int32_t Matmul::Impl::config_of(const cublasLtMatmulAlgo_t& algorithm,
                                cublasLtMatmulAlgoConfigAttributes_t attribute) const {
  int32_t value = 0;
  size_t written = 0;
  const cublasStatus_t status =
      lt.algo_config_get_attribute(&algorithm, attribute, &value, sizeof(value), &written);
  return status == CUBLAS_STATUS_SUCCESS ? value : 0;
}

// With this scheme, a separate kernel adds the parts of a sum in order, in the compute type. The
// library's other schemes add in place, in the order in which parts happen to finish.
bool Matmul::Impl::has_fixed_order(const cublasLtMatmulAlgo_t& algorithm) const {
  const int32_t scheme = config_of(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
  return scheme == CUBLASLT_REDUCTION_SCHEME_NONE ||
         scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

Matmul::Impl::Candidates Matmul::Impl::candidates(MatmulPlan& plan, const MatmulKey& key,
                                                  bool fused, int count) const {
  set_choice(plan, key, {.fused = fused});
  const Preference wanted = preference(key);
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  Candidates all{};
  all.status = lt.algo_get_heuristic(handle, plan.description.get(), plan.b.get(), plan.a.get(),
                                     plan.c.get(), plan.c.get(), wanted.get(), count,
                                     results.data(), &found);
  if (all.status != CUBLAS_STATUS_SUCCESS) return all;
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kWorkspaceBytes) continue;
    if (options.deterministic && !has_fixed_order(result.algo)) continue;
    all.choices.push_back({result.algo, fused});
  }
  return all;
}

bool Matmul::Impl::take_loaded(MatmulPlan& plan, const MatmulKey& key) const {
  const std::string shape = name(key);
  const auto record = loaded.find(shape);
  if (record == loaded.end()) return false;
  const std::optional<MatmulChoice> choice = read_plan(shape, record->second, version);
  if (!choice || (choice->fused && !key.bias)) return false;
  set_choice(plan, key, *choice);
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      lt.algo_check(handle, plan.description.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                    plan.c.get(), &choice->algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kWorkspaceBytes) return false;
  return !options.deterministic || has_fixed_order(choice->algorithm);
}

// Takes the heuristic's first choice, or its first whose bits repeat.
void Matmul::Impl::choose(MatmulPlan& plan, const MatmulKey& key, const MatmulArgs& args,
                          const Tensor& workspace, cudaStream_t stream) const {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  for (const bool fused : {key.bias, false}) {
    const Candidates found = candidates(plan, key, fused, options.deterministic ? kCandidates : 1);
    if (found.status != CUBLAS_STATUS_SUCCESS) status = found.status;
    for (const MatmulChoice& choice : found.choices) {
      set_choice(plan, key, choice);
      if (!options.deterministic ||
          config_of(choice.algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1)
        return;
      MatmulTrial trial(args, stream);
      if (trial.repeats([&] {
            return enqueue(plan, trial.args(), workspace, stream) == CUBLAS_STATUS_SUCCESS;
          }))
        return;
    }
  }
  throw CheckError(
      fmt::format("cuBLASLt has no algorithm for {}: {}", name(key), lt.get_status_string(status)));
}

MatmulPlan& Matmul::Impl::plan_of(const MatmulKey& key, const MatmulArgs& args,
                                  const Tensor& workspace, cudaStream_t stream) {
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "stream");
  LATHE_CHECK(capture == cudaStreamCaptureStatusNone,
              "the first call of the product {} is in a graph capture, where cuBLASLt cannot plan "
              "it: run it once before",
              name(key));
  MatmulPlan plan = describe(key);
  // The heuristic derives the alignment from the pointer.
  if (key.bias) set_vector(plan, args.bias);
  if (!take_loaded(plan, key)) {
    choose(plan, key, args, workspace, stream);
    if (options.autotune && !options.deterministic) tune(plan, key, args, workspace, stream);
  }
  return plans.emplace(key, std::move(plan)).first->second;
}

cublasStatus_t Matmul::Impl::enqueue(MatmulPlan& plan, const MatmulArgs& args,
                                     const Tensor& workspace, cudaStream_t stream) const {
  const bool fill = args.bias && !plan.choice.fused;
  if (fill) broadcast_rows(args.c, args.bias, args.output, args.m, args.n, args.ldc, stream);
  if (plan.choice.fused) set_vector(plan, args.bias);
  const float alpha = 1, beta = args.accumulate || fill ? 1 : 0;
  return lt.matmul(handle, plan.description.get(), &alpha, args.b, plan.b.get(), args.a,
                   plan.a.get(), &beta, args.c, plan.c.get(), args.c, plan.c.get(),
                   &plan.choice.algorithm, workspace.data, kWorkspaceBytes, stream);
}

// Trials leave garbage in c; the requested product comes after them and overwrites it.
void Matmul::Impl::tune(MatmulPlan& plan, const MatmulKey& key, const MatmulArgs& args,
                        const Tensor& workspace, cudaStream_t stream) {
  std::vector<MatmulCandidate> tried = {{plan.choice}};
  const MatmulTrial trial(args, stream);
  if (trial.possible()) {
    const MatmulChoice first = plan.choice;
    for (const MatmulChoice& choice : candidates(plan, key, first.fused, kCandidates).choices)
      if (std::memcmp(&choice.algorithm, &first.algorithm, sizeof(choice.algorithm)))
        tried.push_back({choice});
  }
  const auto run = [&](const MatmulChoice& choice) {
    set_choice(plan, key, choice);
    return enqueue(plan, trial.args(), workspace, stream) == CUBLAS_STATUS_SUCCESS;
  };
  const size_t best = tried.size() > 1 ? tuner.fastest(tried, run, stream) : 0;
  set_choice(plan, key, tried[best].choice);
  log_tuning(key, tried, best);
}

void Matmul::Impl::log_tuning(const MatmulKey& key, const std::vector<MatmulCandidate>& tried,
                              size_t chosen) {
  for (size_t i = 0; i < tried.size(); ++i) {
    const MatmulChoice& choice = tried[i].choice;
    const auto number = [&](cublasLtMatmulAlgoConfigAttributes_t attribute) {
      return config_of(choice.algorithm, attribute);
    };
    log += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}\t{:.4f}\t{}\n", name(key), i,
                       number(CUBLASLT_ALGO_CONFIG_ID), number(CUBLASLT_ALGO_CONFIG_TILE_ID),
                       number(CUBLASLT_ALGO_CONFIG_STAGES_ID),
                       number(CUBLASLT_ALGO_CONFIG_SPLITK_NUM), choice.fused ? "fused" : "separate",
                       tried[i].milliseconds, i == chosen ? "chosen" : "");
  }
}

Matmul::Matmul(const MatmulOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Matmul::~Matmul() = default;

void Matmul::run(const MatmulArgs& given, const Tensor& workspace, cudaStream_t stream) {
  const MatmulArgs args = dense(given);
  check(args);
  check_workspace(workspace, kWorkspaceBytes);
  LATHE_CHECK(reinterpret_cast<uintptr_t>(workspace.data) % 256 == 0);
  const MatmulKey key(args, impl_->options);
  MatmulPlan& plan = impl_->plan_of(key, args, workspace, stream);
  const cublasStatus_t status = impl_->enqueue(plan, args, workspace, stream);
  if (status != CUBLAS_STATUS_SUCCESS) impl_->check_status(status, impl_->name(key).c_str());
}

std::vector<MatmulPlanRecord> Matmul::plans() const {
  std::map<std::string, std::string> all = impl_->loaded;
  for (const auto& [key, plan] : impl_->plans) {
    const std::string shape = impl_->name(key);
    all[shape] = plan_text(shape, plan.choice, impl_->version);
  }
  std::vector<MatmulPlanRecord> records;
  records.reserve(all.size());
  for (const auto& [shape, plan] : all) records.push_back({shape, plan});
  return records;
}

void Matmul::load_plans(const std::vector<MatmulPlanRecord>& records) {
  for (const MatmulPlanRecord& record : records) impl_->loaded[record.shape] = record.plan;
  std::erase_if(impl_->plans,
                [this](const auto& met) { return impl_->loaded.contains(impl_->name(met.first)); });
}

const std::string& Matmul::tuning_log() const {
  return impl_->log;
}

}  // namespace lathe::cuda
