// The stand-in for libcublasLt: the functions that lathe calls, against the real header's types.
//
// It is as strict as the real library if that is known, and stricter if a mistake would go
// unnoticed: attributes have exactly the size that the header gives; layouts are checked when they
// are used, as in the real one; matrices, vectors and workspace must each lie entirely in device
// memory and must not overlap if one is written; an algorithm requires its alignment and the
// workspace that it requested, and first overwrites the workspace with garbage.
//
// LATHE_CUBLASLT_FAST=N makes algorithm N + OMPI_COMM_WORLD_RANK fast and all others slow, as
// measured by events, as if ranks that tune separately found different results.
//
// Work is enqueued on the stream. Sums are in fp32 and rounded once. Algorithms differ in the order
// of their sums, so a change of plan changes bits, as on a GPU.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/cuda_on_cpu/product.h"
#include "kernels/cuda_on_cpu/runtime.h"

struct cublasLtContext {
  uint64_t alive;
  uint64_t fast;
};

namespace lathe::cuda_on_cpu {

namespace {

constexpr uint64_t kAlive = 0x6c74'6861'6e64'6c65, kAlgorithmMark = 0x6c74'616c'676f'0001;
constexpr uint64_t kMostInt32 = 0x7fffffff;

// The content of the opaque descriptors: each is the opaque type with lathe's fields after it.
struct Layout : cublasLtMatrixLayoutOpaque_t {
  cudaDataType type;
  uint64_t rows, columns;
  int64_t ld;

  size_t element() const { return type == CUDA_R_16BF ? 2 : 4; }
  size_t bytes() const { return ((columns - 1) * static_cast<uint64_t>(ld) + rows) * element(); }
};
struct Description : cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType scale;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* vector = nullptr;
  int32_t vector_type = -1;
};
struct Preference : cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace = 0;
  uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t align_a = 256, align_b = 256, align_c = 256, align_d = 256;
};

// An algorithm sums `chunk` products before it adds them to the total. It sums `splits` parts of k
// separately and combines them as `scheme` says.
struct Algorithm {
  uint32_t id, chunk, splits, scheme;
  uint32_t alignment;  // of pointers and columns, in bytes
  size_t scratch;      // workspace in addition to that of the splits
};
constexpr size_t kTileBytes = kTile * sizeof(float);
constexpr Algorithm kAlgorithms[] = {
    {1, 64, 1, CUBLASLT_REDUCTION_SCHEME_NONE, 16, 64 << 10},
    {2, 1 << 20, 1, CUBLASLT_REDUCTION_SCHEME_NONE, 16, kTileBytes},
    {3, 32, 1, CUBLASLT_REDUCTION_SCHEME_NONE, 16, 1 << 20},
    {4, 64, 3, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, 16, 64 << 10},
    {5, 64, 4, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 16, 64 << 10},
    {6, 16, 1, CUBLASLT_REDUCTION_SCHEME_NONE, 2, kTileBytes},
};

uint64_t checksum(const Algorithm& algorithm) {
  return (algorithm.id * 0x9e3779b97f4a7c15) ^ (algorithm.splits * 0xbf58476d1ce4e5b9) ^
         algorithm.scheme ^ kAlgorithmMark;
}
cublasLtMatmulAlgo_t pack(const Algorithm& algorithm) {
  return {{kAlgorithmMark, algorithm.id, algorithm.splits, algorithm.scheme, checksum(algorithm)}};
}
// Empty if the bytes are no algorithm of this library.
std::optional<Algorithm> unpack(const cublasLtMatmulAlgo_t* packed) {
  if (packed == nullptr || packed->data[0] != kAlgorithmMark) return {};
  for (const Algorithm& algorithm : kAlgorithms)
    if (packed->data[1] == algorithm.id && packed->data[2] == algorithm.splits &&
        packed->data[3] == algorithm.scheme && packed->data[4] == checksum(algorithm))
      return algorithm;
  return {};
}

// A requested product, checked.
struct Request {
  const Description* description;
  const Layout *a, *b, *c, *d;
  uint64_t m, n, k;

  bool has_vector() const { return description->epilogue != CUBLASLT_EPILOGUE_DEFAULT; }
  size_t workspace(const Algorithm& algorithm) const {
    if (algorithm.splits == 1) return algorithm.scratch;
    const size_t element =
        algorithm.scheme == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE ? d->element() : sizeof(float);
    return algorithm.scratch + algorithm.splits * m * n * element;
  }
};

bool is_valid(const Layout& layout) {
  return layout.rows > 0 && layout.columns > 0 && layout.rows <= kMostInt32 &&
         layout.columns <= kMostInt32 && layout.ld >= static_cast<int64_t>(layout.rows);
}

cublasStatus_t check_types(const Request& r) {
  const Description& how = *r.description;
  if (how.scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (r.a->type != r.b->type || r.c->type != r.d->type) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool fp32 = r.a->type == CUDA_R_32F && r.d->type == CUDA_R_32F;
  const bool bf16 =
      r.a->type == CUDA_R_16BF && (r.d->type == CUDA_R_16BF || r.d->type == CUDA_R_32F);
  const bool supported = (how.compute == CUBLAS_COMPUTE_32F && (fp32 || bf16)) ||
                         (how.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && fp32);
  if (!supported) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (how.epilogue != CUBLASLT_EPILOGUE_DEFAULT && how.epilogue != CUBLASLT_EPILOGUE_BIAS)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool has_type = how.vector_type != -1;
  if (r.has_vector() && has_type && how.vector_type != static_cast<int32_t>(r.d->type))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t make_request(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, Request& r) {
  if (handle == nullptr || handle->alive != kAlive) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!description || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
  r = {static_cast<const Description*>(description), static_cast<const Layout*>(a),
       static_cast<const Layout*>(b), static_cast<const Layout*>(c), static_cast<const Layout*>(d)};
  for (const Layout* layout : {r.a, r.b, r.c, r.d})
    if (!is_valid(*layout)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool ta = r.description->transpose_a == CUBLAS_OP_T;
  const bool tb = r.description->transpose_b == CUBLAS_OP_T;
  r.m = ta ? r.a->columns : r.a->rows;
  r.k = ta ? r.a->rows : r.a->columns;
  r.n = tb ? r.b->rows : r.b->columns;
  if ((tb ? r.b->columns : r.b->rows) != r.k || r.d->rows != r.m || r.d->columns != r.n ||
      r.c->rows != r.m || r.c->columns != r.n || r.c->ld != r.d->ld)
    return CUBLAS_STATUS_INVALID_VALUE;
  return check_types(r);
}

bool is_aligned(const void* pointer, uint32_t alignment) {
  return reinterpret_cast<uintptr_t>(pointer) % alignment == 0;
}

// Whether the algorithm can compute this product, for any pointers.
bool serves(const Algorithm& algorithm, const Request& r) {
  for (const Layout* layout : {r.a, r.b, r.d})
    if (static_cast<size_t>(layout->ld) * layout->element() % algorithm.alignment != 0)
      return false;
  if (!is_aligned(r.description->vector, r.has_vector() ? algorithm.alignment : 1)) return false;
  return algorithm.splits == 1 || r.k >= 8 * algorithm.splits;
}

struct Range {
  const void* start;
  size_t bytes;
  bool overlaps(const Range& other) const {
    const auto a = reinterpret_cast<uintptr_t>(start), b = reinterpret_cast<uintptr_t>(other.start);
    return a < b + other.bytes && b < a + bytes;
  }
};

struct Operands {
  const void *a, *b, *c;
  void *d, *workspace;
  size_t workspace_bytes;
};

// The checks of one call: alignment, memory, overlaps.
cublasStatus_t check_operands(const Request& r, const Algorithm& algorithm, const Operands& o,
                              bool reads_c) {
  if (!o.a || !o.b || !o.d || (reads_c && !o.c)) return CUBLAS_STATUS_INVALID_VALUE;
  for (const void* pointer : {o.a, o.b, static_cast<const void*>(o.d)})
    if (!is_aligned(pointer, algorithm.alignment)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (reads_c && o.c != o.d) return CUBLAS_STATUS_NOT_SUPPORTED;
  const size_t wanted = r.workspace(algorithm);
  if (o.workspace_bytes < wanted || !o.workspace || !is_aligned(o.workspace, 256))
    return CUBLAS_STATUS_INVALID_VALUE;
  std::vector<Range> read{{o.a, r.a->bytes()}, {o.b, r.b->bytes()}};
  const std::vector<Range> written{{o.d, r.d->bytes()}, {o.workspace, wanted}};
  if (r.has_vector()) {
    if (!r.description->vector) return CUBLAS_STATUS_INVALID_VALUE;
    read.push_back({r.description->vector, r.m * r.d->element()});
  }
  for (size_t i = 0; i < written.size(); ++i) {
    if (!is_device_memory(written[i].start, written[i].bytes))
      return CUBLAS_STATUS_EXECUTION_FAILED;
    for (size_t j = 0; j < i; ++j)
      if (written[i].overlaps(written[j])) return CUBLAS_STATUS_INVALID_VALUE;
    for (const Range& range : read)
      if (written[i].overlaps(range)) return CUBLAS_STATUS_INVALID_VALUE;
  }
  for (const Range& range : read)
    if (!is_device_memory(range.start, range.bytes)) return CUBLAS_STATUS_EXECUTION_FAILED;
  return CUBLAS_STATUS_SUCCESS;
}

// The enqueued work. Everything is by value, because descriptors may be gone or changed when it
// runs.
struct Work {
  Algorithm algorithm;
  Product product;
  Operands operands;
  int64_t ld_d = 0;
  bool bf16_out = false;
  uint32_t epilogue = 0;
  void* vector = nullptr;
  float alpha = 0, beta = 0;
  size_t workspace_bytes = 0;  // required

  float* tile() const { return static_cast<float*>(operands.workspace); }
  char* partials() const { return static_cast<char*>(operands.workspace) + algorithm.scratch; }

  void run() const {
    std::memset(operands.workspace, 0xff, workspace_bytes);
    const int64_t depth = (product.k + algorithm.splits - 1) / algorithm.splits;
    for (int64_t split = 0; split < algorithm.splits; ++split)
      for (int64_t column = 0; column < product.n; column += kTileColumns)
        for (int64_t row = 0; row < product.m; row += kTileRows) {
          product_tile(product, row, column, std::min(product.k, split * depth),
                       std::min(product.k, (split + 1) * depth), tile());
          store_tile(row, column, split);
        }
    if (algorithm.splits > 1) join_splits();
  }

  void store_tile(int64_t row, int64_t column, int64_t split) const {
    for (int64_t j = 0; j < std::min(kTileColumns, product.n - column); ++j)
      for (int64_t i = 0; i < std::min(kTileRows, product.m - row); ++i) {
        const float sum = tile()[j * kTileRows + i];
        if (algorithm.splits == 1) {
          finish(row + i, column + j, sum);
        } else {
          store(partials(), partials_in_bf16(),
                (split * product.n + column + j) * product.m + row + i, sum);
        }
      }
  }
  bool partials_in_bf16() const {
    return bf16_out && algorithm.scheme == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
  }
  void join_splits() const {
    for (int64_t column = 0; column < product.n; ++column)
      for (int64_t row = 0; row < product.m; ++row) {
        float sum = 0;
        for (int64_t split = 0; split < algorithm.splits; ++split)
          sum +=
              load(partials(), partials_in_bf16(), (split * product.n + column) * product.m + row);
        finish(row, column, sum);
      }
  }
  void finish(int64_t row, int64_t column, float sum) const {
    float value = alpha * sum;
    const int64_t at = column * ld_d + row;
    if (beta != 0) value += beta * load(operands.d, bf16_out, at);  // d is not read if beta is 0
    if (epilogue == CUBLASLT_EPILOGUE_BIAS) value += load(vector, bf16_out, row);
    store(operands.d, bf16_out, at, value);
  }
  static float load(const void* from, bool bf16, int64_t at) {
    return bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at])
                : static_cast<const float*>(from)[at];
  }
  static void store(void* to, bool bf16, int64_t at, float value) {
    if (bf16) {
      static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(to)[at] = value;
    }
  }
};

template <typename Value>
cublasStatus_t assign(Value& to, const void* from, size_t bytes) {
  if (from == nullptr || bytes != sizeof(Value)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

// The algorithm that LATHE_CUBLASLT_FAST makes fast; 0: no algorithm's time is changed.
uint64_t fast_algorithm() {
  const auto number = [](const char* name) {
    const char* value = std::getenv(name);
    return value ? std::strtoull(value, nullptr, 10) : 0;
  };
  const uint64_t first = number("LATHE_CUBLASLT_FAST");
  return first == 0 ? 0 : first + number("OMPI_COMM_WORLD_RANK");
}

// Likeliest first: split sums if k is long, then by number.
std::vector<Algorithm> ranked(const Request& r) {
  std::vector<Algorithm> order(std::begin(kAlgorithms), std::end(kAlgorithms));
  if (r.k >= 4 * std::max(r.m, r.n))
    std::stable_partition(order.begin(), order.end(),
                          [](const Algorithm& a) { return a.splits > 1; });
  return order;
}

bool allowed(const Algorithm& algorithm, const Request& r, const Preference& wanted) {
  if (algorithm.scheme != CUBLASLT_REDUCTION_SCHEME_NONE && !(wanted.schemes & algorithm.scheme))
    return false;
  for (uint32_t alignment : {wanted.align_a, wanted.align_b, wanted.align_c, wanted.align_d})
    if (alignment < algorithm.alignment) return false;
  return serves(algorithm, r) && r.workspace(algorithm) <= wanted.workspace;
}

}  // namespace
}  // namespace lathe::cuda_on_cpu

namespace on_cpu = lathe::cuda_on_cpu;

extern "C" {

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t* handle) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext{on_cpu::kAlive, on_cpu::fast_algorithm()};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr || handle->alive != on_cpu::kAlive) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->alive = 0;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
size_t CUBLASWINAPI cublasLtGetVersion() {
  return CUBLAS_VERSION;
}
const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "an internal operation failed";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    default:
      return "another status";
  }
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made,
                                                     cublasComputeType_t compute,
                                                     cudaDataType_t scale) {
  auto* description = new on_cpu::Description{};
  description->compute = compute;
  description->scale = scale;
  *made = description;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete static_cast<on_cpu::Description*>(description);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                                           cublasLtMatmulDescAttributes_t attribute,
                                                           const void* value, size_t bytes) {
  if (description == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& d = *static_cast<on_cpu::Description*>(description);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return on_cpu::assign(d.transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return on_cpu::assign(d.transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return on_cpu::assign(d.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return on_cpu::assign(d.vector, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return on_cpu::assign(d.vector_type, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made,
                                                       cudaDataType type, uint64_t rows,
                                                       uint64_t columns, int64_t ld) {
  auto* layout = new on_cpu::Layout{};
  layout->type = type;
  layout->rows = rows, layout->columns = columns, layout->ld = ld;
  *made = layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete static_cast<on_cpu::Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  *made = new on_cpu::Preference{};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete static_cast<on_cpu::Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
    const void* value, size_t bytes) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& p = *static_cast<on_cpu::Preference*>(preference);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return on_cpu::assign(p.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return on_cpu::assign(p.schemes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return on_cpu::assign(p.align_a, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return on_cpu::assign(p.align_b, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return on_cpu::assign(p.align_c, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return on_cpu::assign(p.align_d, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int requested, cublasLtMatmulHeuristicResult_t results[],
    int* returned) {
  *returned = 0;
  if (on_cpu::is_capturing()) return CUBLAS_STATUS_INTERNAL_ERROR;  // like CUDA 13.3
  on_cpu::Request request{};
  const cublasStatus_t status = on_cpu::make_request(handle, description, a, b, c, d, request);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (requested <= 0 || preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const auto& wanted = *static_cast<const on_cpu::Preference*>(preference);
  for (const on_cpu::Algorithm& algorithm : on_cpu::ranked(request)) {
    if (*returned == requested) break;
    if (!on_cpu::allowed(algorithm, request, wanted)) continue;
    cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
    result = {};
    result.algo = on_cpu::pack(algorithm);
    result.workspaceSize = request.workspace(algorithm);
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1;
  }
  return *returned > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoCheck(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  on_cpu::Request request{};
  const cublasStatus_t status = on_cpu::make_request(handle, description, a, b, c, d, request);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto algorithm = on_cpu::unpack(algo);
  if (!algorithm) return CUBLAS_STATUS_INVALID_VALUE;
  if (!on_cpu::serves(*algorithm, request)) return CUBLAS_STATUS_NOT_SUPPORTED;
  result->workspaceSize = request.workspace(*algorithm);
  result->state = CUBLAS_STATUS_SUCCESS;
  result->wavesCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoConfigGetAttribute(
    const cublasLtMatmulAlgo_t* algo, cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
    size_t bytes, size_t* written) {
  const auto algorithm = on_cpu::unpack(algo);
  if (!algorithm || value == nullptr || bytes != sizeof(uint32_t))
    return CUBLAS_STATUS_INVALID_VALUE;
  const uint32_t* from = nullptr;
  if (attribute == CUBLASLT_ALGO_CONFIG_ID) from = &algorithm->id;
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) from = &algorithm->splits;
  if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) from = &algorithm->scheme;
  if (from == nullptr) return CUBLAS_STATUS_NOT_SUPPORTED;
  std::memcpy(value, from, bytes);
  if (written) *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
    cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
    const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
    cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
    size_t workspace_bytes, cudaStream_t stream) {
  on_cpu::Request request{};
  cublasStatus_t status =
      on_cpu::make_request(handle, description, a_layout, b_layout, c_layout, d_layout, request);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto algorithm = on_cpu::unpack(algo);
  if (!algorithm || !alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
  if (!on_cpu::serves(*algorithm, request)) return CUBLAS_STATUS_NOT_SUPPORTED;
  const on_cpu::Operands operands{a, b, c, d, workspace, workspace_bytes};
  const float factor = *static_cast<const float*>(beta);
  status = on_cpu::check_operands(request, *algorithm, operands, factor != 0);
  if (status != CUBLAS_STATUS_SUCCESS) return status;

  const on_cpu::Description& how = *request.description;
  if (on_cpu::WorkListener* const listener = on_cpu::listener()) {
    // Column-major here: d's rows are the caller's columns.
    listener->product({.m = request.n,
                       .n = request.m,
                       .k = request.k,
                       .bf16_in = request.a->type == CUDA_R_16BF,
                       .bf16_out = request.d->type == CUDA_R_16BF,
                       .adds = factor != 0,
                       .has_vector = request.has_vector()});
    return CUBLAS_STATUS_SUCCESS;
  }
  on_cpu::Work work{*algorithm};
  work.product = {
      {a, request.a->ld, request.a->type == CUDA_R_16BF, how.transpose_a == CUBLAS_OP_T},
      {b, request.b->ld, request.b->type == CUDA_R_16BF, how.transpose_b == CUBLAS_OP_T},
      static_cast<int64_t>(request.m),
      static_cast<int64_t>(request.n),
      static_cast<int64_t>(request.k),
      algorithm->chunk};
  work.operands = operands;
  work.ld_d = request.d->ld, work.bf16_out = request.d->type == CUDA_R_16BF;
  work.epilogue = how.epilogue, work.vector = how.vector;
  work.alpha = *static_cast<const float*>(alpha), work.beta = factor;
  work.workspace_bytes = request.workspace(*algorithm);
  const bool slow = handle->fast != 0 && algorithm->id != handle->fast;
  const cudaError_t error = on_cpu::enqueue(stream, "cublasLtMatmul", [work, slow] {
    work.run();
    if (slow) on_cpu::pretend_to_take(1e6);
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
