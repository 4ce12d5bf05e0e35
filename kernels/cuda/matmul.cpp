// Matrix products by cuBLASLt.
//
// Layout: cuBLASLt thinks column-major. A row-major matrix [r, c] is, in memory, the column-major
// matrix [c, r], its transpose. So d = a b is asked for as d' = b' a': cuBLASLt's A is our b, its B
// our a, its D has n rows and m columns, and nothing is ever transposed in memory. Its vectors
// along the rows of D (the bias; the gradient of a bias that epilogue BGRADA sums over A) have n
// elements.
//
// Epilogues. The bias is added by the library, in fp32 before the one rounding. Where it cannot (a
// bias that is not aligned to 16 bytes), d is filled with it and the product added, which rounds
// once as well. Column sums come from epilogue BGRADA or from column_sums.cu, whichever was
// measured to be faster; without measuring, from the latter. The epilogue overwrites its vector, so
// where sums accumulate it writes to the workspace, and a kernel adds them. GELU epilogues are not
// used: they apply GELU (only the tanh form) to the unrounded sum, while the contract of
// LinearForward wants GELU of the rounded pre-activation, so that fused and unfused, and what is
// recomputed, give the same bits. GELU is a kernel of its own.
//
// Sums that are split over k must meet in fp32: of cuBLASLt's reduction schemes only COMPUTE_TYPE
// is allowed (the others keep partial sums in the type of d). Where determinism was asked for, the
// sum is not split at all.
#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <sstream>
#include <unordered_map>

#include "kernels/check.h"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/launch.h"

namespace lathe::cuda {

namespace {

constexpr size_t kLibraryWorkspace = size_t{32} << 20;  // as cuBLAS takes on Hopper
constexpr uintptr_t kAlignment = 16;                    // more makes nothing faster
constexpr int kCandidates = 8, kTimedRuns = 3;
// Another candidate than the heuristic's first must be this much faster, or noise would choose.
constexpr float kWorthwhile = 0.98f;

constexpr size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

uint8_t alignment_of(const void* pointer) {
  return static_cast<uint8_t>(
      uintptr_t{1} << std::countr_zero(reinterpret_cast<uintptr_t>(pointer) | kAlignment));
}

cudaDataType_t cuda_type(DType dtype) {
  LATHE_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "product in {}", name_of(dtype));
  return dtype == DType::fp32 ? CUDA_R_32F : CUDA_R_16BF;
}

// What an algorithm may depend on: plans are cached by it.
struct Key {
  int64_t m, n, k, ld_d, ld_a, ld_b;
  bool transpose_a, transpose_b;
  DType input, output;
  bool bias, sums;  // that an epilogue could handle
  uint8_t align_d, align_a, align_b;

  bool operator==(const Key&) const = default;

  explicit Key(const MatmulArgs& args)
      : m(args.m),
        n(args.n),
        k(args.k),
        ld_d(args.ld_d),
        ld_a(args.ld_a),
        ld_b(args.ld_b),
        transpose_a(args.transpose_a),
        transpose_b(args.transpose_b),
        input(args.input),
        output(args.output),
        bias(args.bias_n && alignment_of(args.bias_n) == kAlignment),
        sums(args.sum_of_b_n && alignment_of(args.sum_of_b_n) == kAlignment),
        align_d(alignment_of(args.d)),
        align_a(alignment_of(args.a)),
        align_b(alignment_of(args.b)) {}
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xcbf29ce484222325;
    for (int64_t word :
         {key.m, key.n, key.k, key.ld_d, key.ld_a, key.ld_b,
          int64_t{key.transpose_a} | int64_t{key.transpose_b} << 1 | int64_t{key.bias} << 2 |
              int64_t{key.sums} << 3 | static_cast<int64_t>(key.input) << 4 |
              static_cast<int64_t>(key.output) << 8 | int64_t{key.align_d} << 16 |
              int64_t{key.align_a} << 24 | int64_t{key.align_b} << 32}) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

std::string to_string(const Key& key, bool tf32) {
  return fmt::format("{}{} to {} m {} n {} k {} {}{} ld {} {} {} align {} {} {}{}{}",
                     name_of(key.input), tf32 && key.input == DType::fp32 ? " (tf32)" : "",
                     name_of(key.output), key.m, key.n, key.k, key.transpose_a ? "t" : "n",
                     key.transpose_b ? "t" : "n", key.ld_d, key.ld_a, key.ld_b, key.align_d,
                     key.align_a, key.align_b, key.bias ? " bias" : "", key.sums ? " sums" : "");
}

using Description =
    std::unique_ptr<cublasLtMatmulDescOpaque_t, decltype(&cublasLtMatmulDescDestroy)>;
using Layout =
    std::unique_ptr<cublasLtMatrixLayoutOpaque_t, decltype(&cublasLtMatrixLayoutDestroy)>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(&cublasLtMatmulPreferenceDestroy)>;

// How one shape is computed. `a` and `b` are ours, not cuBLASLt's.
struct Plan {
  Description description;
  Layout a, b, d;
  cublasLtMatmulAlgo_t algorithm{};
  bool fused = false;  // the epilogue handles bias or sums
  bool final = false;  // tuned, or loaded
};

// A plan as text: the library's version, whether fused, the algorithm's bytes.
std::string to_string(const Plan& plan, size_t version) {
  std::string text = fmt::format("{} {}", version, plan.fused ? "fused" : "separate");
  for (uint64_t word : plan.algorithm.data) text += fmt::format(" {:016x}", word);
  return text;
}

// False where the text is none, or another version's.
bool read_plan(const std::string& text, size_t version, Plan& plan) {
  std::istringstream stream(text);
  size_t made_by = 0;
  std::string fused;
  if (!(stream >> made_by >> fused) || made_by != version) return false;
  if (fused != "fused" && fused != "separate") return false;
  plan.fused = fused == "fused";
  for (uint64_t& word : plan.algorithm.data)
    if (!(stream >> std::hex >> word)) return false;
  return true;
}

void check(const MatmulArgs& args) {
  LATHE_CHECK(args.m > 0 && args.n > 0 && args.k > 0, "[{}, {}] x [{}, {}]", args.m, args.k, args.k,
              args.n);
  LATHE_CHECK(args.d && args.a && args.b);
  LATHE_CHECK(args.ld_d >= args.n && args.ld_a >= (args.transpose_a ? args.m : args.k) &&
                  args.ld_b >= (args.transpose_b ? args.k : args.n),
              "leading dimensions {}, {}, {} of [{}, {}] x [{}, {}]", args.ld_d, args.ld_a,
              args.ld_b, args.m, args.k, args.k, args.n);
  LATHE_CHECK(
      args.input == args.output || (args.input == DType::bf16 && args.output == DType::fp32),
      "product of {} in {}", name_of(args.input), name_of(args.output));
  LATHE_CHECK(!args.bias_n || (!args.accumulate && !args.sum_of_b_n));
  LATHE_CHECK(!args.sum_of_b_n || (args.output == DType::fp32 && !args.transpose_b));
}

MatmulArgs dense(MatmulArgs args) {
  if (args.ld_d == 0) args.ld_d = args.n;
  if (args.ld_a == 0) args.ld_a = args.transpose_a ? args.m : args.k;
  if (args.ld_b == 0) args.ld_b = args.transpose_b ? args.k : args.n;
  return args;
}

}  // namespace

struct Matmul::Impl {
  explicit Impl(const MatmulOptions& wanted) : options(wanted), lt(load_cublaslt()) {
    check_status(lt.create(&handle), "cublasLtCreate");
    version = lt.get_version();
    check_cuda(cudaEventCreate(&start), "event");
    check_cuda(cudaEventCreate(&stop), "event");
  }
  ~Impl() {
    plans.clear();
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    lt.destroy(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void check_status(cublasStatus_t status, const char* what) const {
    if (status != CUBLAS_STATUS_SUCCESS)
      throw CheckError(fmt::format("cuBLASLt: {}: {}", what, lt.get_status_string(status)));
  }
  template <typename Value>
  void set(Plan& plan, cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
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
  // Descriptors, without an algorithm. A row-major matrix gives its column-major transpose.
  Plan describe(const Key& key) const;
  void set_epilogue(Plan& plan, const Key& key, bool fused) const;
  void set_vector(Plan& plan, const void* vector) const {
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
  }

  Preference preference(const Key& key) const;
  bool is_reproducible(const cublasLtMatmulAlgo_t& algorithm) const;
  // The heuristic's algorithms for the epilogue that is set, the likeliest first.
  std::vector<cublasLtMatmulAlgo_t> candidates(const Plan& plan, const Key& key, int count) const;

  Plan& plan_of(const Key& key, const MatmulArgs& args);
  bool take_loaded(Plan& plan, const Key& key) const;
  void choose(Plan& plan, const Key& key) const;

  cublasStatus_t enqueue(Plan& plan, const MatmulArgs& args, const Tensor& workspace,
                         cudaStream_t stream) const;
  float milliseconds(Plan& plan, const MatmulArgs& args, const Tensor& workspace,
                     cudaStream_t stream) const;
  void tune(Plan& plan, const Key& key, const MatmulArgs& args, const Tensor& workspace,
            cudaStream_t stream) const;
  bool may_tune(const MatmulArgs& args, cudaStream_t stream) const;

  MatmulOptions options;
  CublasLt lt;
  cublasLtHandle_t handle = nullptr;
  size_t version = 0;
  cudaEvent_t start = nullptr, stop = nullptr;
  std::unordered_map<Key, Plan, KeyHash> plans;
  std::map<std::string, std::string> loaded;  // by shape
};

Plan Matmul::Impl::describe(const Key& key) const {
  const bool tf32 = options.tf32 && key.input == DType::fp32;
  cublasLtMatmulDesc_t description = nullptr;
  check_status(
      lt.matmul_desc_create(&description, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                            CUDA_R_32F),
      "descriptor");
  Plan plan{Description(description, lt.matmul_desc_destroy),
            make_layout(key.input, key.transpose_a ? key.m : key.k, key.transpose_a ? key.k : key.m,
                        key.ld_a),
            make_layout(key.input, key.transpose_b ? key.k : key.n, key.transpose_b ? key.n : key.k,
                        key.ld_b),
            make_layout(key.output, key.n, key.m, key.ld_d)};
  const int32_t first = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int32_t second = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, second);
  return plan;
}

void Matmul::Impl::set_epilogue(Plan& plan, const Key& key, bool fused) const {
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  if (fused) epilogue = key.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_BGRADA;
  set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (fused) {
    const int32_t type = cuda_type(key.output);
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  }
  plan.fused = fused;
}

Preference Matmul::Impl::preference(const Key& key) const {
  cublasLtMatmulPreference_t made = nullptr;
  check_status(lt.preference_create(&made), "preference");
  Preference preference(made, lt.preference_destroy);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kLibraryWorkspace});
  const uint32_t schemes = options.deterministic ? CUBLASLT_REDUCTION_SCHEME_NONE
                                                 : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{key.align_b});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{key.align_a});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{key.align_d});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{key.align_d});
  return preference;
}

bool Matmul::Impl::is_reproducible(const cublasLtMatmulAlgo_t& algorithm) const {
  int32_t splits = 0;
  uint32_t scheme = 0;
  size_t written = 0;
  check_status(lt.algo_config_get_attribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                            sizeof(splits), &written),
               "splits of an algorithm");
  check_status(lt.algo_config_get_attribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                            &scheme, sizeof(scheme), &written),
               "reduction of an algorithm");
  return splits <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

std::vector<cublasLtMatmulAlgo_t> Matmul::Impl::candidates(const Plan& plan, const Key& key,
                                                           int count) const {
  const Preference wanted = preference(key);
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  const cublasStatus_t status = lt.algo_get_heuristic(handle, plan.description.get(), plan.b.get(),
                                                      plan.a.get(), plan.d.get(), plan.d.get(),
                                                      wanted.get(), count, results.data(), &found);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  if (status != CUBLAS_STATUS_SUCCESS) return algorithms;
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kLibraryWorkspace) continue;
    if (options.deterministic && !is_reproducible(result.algo)) continue;
    algorithms.push_back(result.algo);
  }
  return algorithms;
}

bool Matmul::Impl::take_loaded(Plan& plan, const Key& key) const {
  const auto record = loaded.find(to_string(key, options.tf32));
  if (record == loaded.end() || !read_plan(record->second, version, plan)) return false;
  if (plan.fused && !key.bias && !key.sums) return false;
  set_epilogue(plan, key, plan.fused);
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      lt.algo_check(handle, plan.description.get(), plan.b.get(), plan.a.get(), plan.d.get(),
                    plan.d.get(), &plan.algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kLibraryWorkspace) return false;
  return !options.deterministic || is_reproducible(plan.algorithm);
}

// The heuristic's first choice. Deterministic and untuned plans leave column sums to our kernel.
void Matmul::Impl::choose(Plan& plan, const Key& key) const {
  for (const bool fused : {key.bias, false}) {
    set_epilogue(plan, key, fused);
    // Where determinism filters them, the first of many may be the right one.
    const auto algorithms = candidates(plan, key, options.deterministic ? kCandidates : 1);
    if (algorithms.empty()) continue;
    plan.algorithm = algorithms.front();
    return;
  }
  throw CheckError(fmt::format("cuBLASLt has no algorithm for {}", to_string(key, options.tf32)));
}

Plan& Matmul::Impl::plan_of(const Key& key, const MatmulArgs& args) {
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  Plan plan = describe(key);
  // The heuristic reads alignment off the pointer.
  if (key.bias) set_vector(plan, args.bias_n);
  if (key.sums) set_vector(plan, args.sum_of_b_n);
  plan.final = take_loaded(plan, key);
  if (!plan.final) choose(plan, key);
  return plans.emplace(key, std::move(plan)).first->second;
}

cublasStatus_t Matmul::Impl::enqueue(Plan& plan, const MatmulArgs& args, const Tensor& workspace,
                                     cudaStream_t stream) const {
  const bool fill = args.bias_n && !plan.fused;
  if (fill) broadcast_rows(args.d, args.bias_n, args.output, args.m, args.n, args.ld_d, stream);
  auto* const staged_sums =
      reinterpret_cast<float*>(static_cast<char*>(workspace.data) + kLibraryWorkspace);
  if (plan.fused) {
    const void* sums = args.accumulate ? staged_sums : args.sum_of_b_n;
    set_vector(plan, args.bias_n ? args.bias_n : sums);
  }
  const float alpha = 1, beta = args.accumulate || fill ? 1 : 0;
  const cublasStatus_t status =
      lt.matmul(handle, plan.description.get(), &alpha, args.b, plan.b.get(), args.a, plan.a.get(),
                &beta, args.d, plan.d.get(), args.d, plan.d.get(), &plan.algorithm, workspace.data,
                kLibraryWorkspace, stream);
  if (status != CUBLAS_STATUS_SUCCESS || !args.sum_of_b_n) return status;
  if (!plan.fused) {
    column_sums(args.sum_of_b_n, args.b, args.input, args.k, args.n, args.ld_b, args.accumulate,
                workspace, stream);
  } else if (args.accumulate) {
    column_sums(args.sum_of_b_n, staged_sums, DType::fp32, 1, args.n, args.n, true, workspace,
                stream);
  }
  return status;
}

// Infinite where the library refuses.
float Matmul::Impl::milliseconds(Plan& plan, const MatmulArgs& args, const Tensor& workspace,
                                 cudaStream_t stream) const {
  const float never = std::numeric_limits<float>::infinity();
  if (enqueue(plan, args, workspace, stream) != CUBLAS_STATUS_SUCCESS) return never;  // warm-up
  if (plan.fused && args.sum_of_b_n) {  // the plan will serve calls that accumulate, too
    MatmulArgs adding = args;
    adding.accumulate = true;
    if (enqueue(plan, adding, workspace, stream) != CUBLAS_STATUS_SUCCESS) return never;
  }
  check_cuda(cudaEventRecord(start, stream), "event");
  for (int i = 0; i < kTimedRuns; ++i)
    if (enqueue(plan, args, workspace, stream) != CUBLAS_STATUS_SUCCESS) return never;
  check_cuda(cudaEventRecord(stop, stream), "event");
  check_cuda(cudaEventSynchronize(stop), "timing a product");
  float elapsed = 0;
  check_cuda(cudaEventElapsedTime(&elapsed, start, stop), "timing a product");
  return elapsed;
}

// Overwrites d with each candidate in turn, each time with the whole result.
void Matmul::Impl::tune(Plan& plan, const Key& key, const MatmulArgs& args, const Tensor& workspace,
                        cudaStream_t stream) const {
  cublasLtMatmulAlgo_t best = plan.algorithm;
  bool best_fused = plan.fused;
  float least = milliseconds(plan, args, workspace, stream) * kWorthwhile;
  const auto try_all = [&](bool fused) {
    set_epilogue(plan, key, fused);
    for (const cublasLtMatmulAlgo_t& algorithm : candidates(plan, key, kCandidates)) {
      plan.algorithm = algorithm;
      const float time = milliseconds(plan, args, workspace, stream);
      if (time < least) least = time, best = algorithm, best_fused = fused;
    }
  };
  try_all(plan.fused);
  if (key.sums) try_all(true);
  set_epilogue(plan, key, best_fused);
  plan.algorithm = best;
  plan.final = true;
}

bool Matmul::Impl::may_tune(const MatmulArgs& args, cudaStream_t stream) const {
  // What accumulates would be added again and again.
  if (!options.autotune || options.deterministic || args.accumulate) return false;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "stream");
  return capture == cudaStreamCaptureStatusNone;
}

Matmul::Matmul(const MatmulOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Matmul::~Matmul() = default;

size_t Matmul::workspace_bytes(const MatmulArgs& args) {
  if (!args.sum_of_b_n) return kLibraryWorkspace;
  return std::max(kLibraryWorkspace + aligned(static_cast<size_t>(args.n) * sizeof(float)),
                  column_sums_workspace(args.k, args.n));
}

void Matmul::run(const MatmulArgs& given, const Tensor& workspace, cudaStream_t stream) {
  const MatmulArgs args = dense(given);
  check(args);
  check_workspace(workspace, workspace_bytes(args));
  LATHE_CHECK(reinterpret_cast<uintptr_t>(workspace.data) % 256 == 0);
  const Key key(args);
  Plan& plan = impl_->plan_of(key, args);
  if (!plan.final && impl_->may_tune(args, stream)) impl_->tune(plan, key, args, workspace, stream);
  const cublasStatus_t status = impl_->enqueue(plan, args, workspace, stream);
  if (status != CUBLAS_STATUS_SUCCESS)
    impl_->check_status(status, to_string(key, impl_->options.tf32).c_str());
}

std::vector<MatmulPlanRecord> Matmul::plans() const {
  std::map<std::string, std::string> all = impl_->loaded;
  for (const auto& [key, plan] : impl_->plans)
    all[to_string(key, impl_->options.tf32)] = to_string(plan, impl_->version);
  std::vector<MatmulPlanRecord> records;
  records.reserve(all.size());
  for (const auto& [shape, plan] : all) records.push_back({shape, plan});
  return records;
}

void Matmul::load_plans(const std::vector<MatmulPlanRecord>& records) {
  for (const MatmulPlanRecord& record : records) impl_->loaded[record.shape] = record.plan;
}

}  // namespace lathe::cuda
