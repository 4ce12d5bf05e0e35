// Matrix products on the GPU by cuBLASLt, row-major.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"

namespace lathe::cuda {

// c [m, n] = a b (+ bias) or c += a b: sums in fp32, rounded once. a is [m, k] in memory, or
// [k, m] if transpose_a; b is [k, n], or [n, k] if transpose_b. A leading dimension is the number
// of elements from one row to the next, 0 for a dense matrix. c overlaps none of the inputs.
struct MatmulArgs {
  void* c = nullptr;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* bias = nullptr;   // [n], of c's type, or absent; not with accumulate
  int64_t m = 0, n = 0, k = 0;  // all positive
  int64_t lda = 0, ldb = 0, ldc = 0;
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;
  DType input = DType::fp32, output = DType::fp32;  // (fp32, fp32), (bf16, bf16) or (bf16, fp32)
};

struct MatmulOptions {
  bool tf32 = false;  // fp32 products may round their inputs to TF32
  // Takes the heuristic's first choice whose order of sums is fixed: computed in one piece, or in
  // parts that are added in order and that gave the same bits three times.
  bool deterministic = false;
  bool autotune = true;   // times the heuristic's candidates; not if deterministic
  size_t alignment = 16;  // bytes: the largest that the heuristic may assume, 16 to 256
};

// The plan for one shape, as data: a checkpoint keeps it, so that a resumed run computes the same
// bits. Valid only for the same version of cuBLASLt on the same kind of GPU.
struct MatmulPlanRecord {
  std::string shape;  // names types, sizes, transposes, alignments, epilogue
  std::string plan;
  bool operator==(const MatmulPlanRecord&) const = default;
};

// Products with a plan per shape: descriptors, algorithm, epilogue. A call that adds to c has
// another shape than one that overwrites it. The first call with a shape makes its plan and must
// not be in a graph capture; later calls allocate nothing on the host. With autotune, or if
// deterministic, the first call tries algorithms: it waits for the device and writes c several
// times, the last time with the final result. A c that is added to is left alone: trials run on a
// copy.
// Not for several threads at once.
class Matmul {
 public:
  // Loads cuBLASLt; throws a UserError if it is not available.
  explicit Matmul(const MatmulOptions& options = {});
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // The workspace that a call needs, aligned to 256 bytes: the size that cuBLAS uses on Hopper.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  // Enqueues. Throws CheckError, naming the shape, if cuBLASLt has no algorithm, or if the first
  // call with a shape is in a capture.
  void run(const MatmulArgs& args, const Tensor& workspace, cudaStream_t stream);

  // All plans that were made or loaded, ordered by shape.
  std::vector<MatmulPlanRecord> plans() const;
  // Uses these plans from the next call on; graphs captured before keep the old ones. Ignores a
  // plan that the library refuses, that another version made or that is damaged: its shape is then
  // planned as a new one.
  void load_plans(const std::vector<MatmulPlanRecord>& records);

  // What tuning measured, as a table with tab-separated columns: shape, candidate, algorithm, tile,
  // stages, splits, whether fused, milliseconds (the minimum), whether chosen. "" if nothing was
  // tuned.
  const std::string& tuning_log() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lathe::cuda
