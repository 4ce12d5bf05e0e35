// Matrix products on the GPU by cuBLASLt, row-major.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"

namespace lathe::cuda {

// c [m, n] = a b (+ bias) or c += a b: sums in fp32, rounded once. a is [m, k] in memory, or
// [k, m] where transpose_a; b is [k, n], or [n, k] where transpose_b; leading dimensions are the
// elements from one row to the next, 0 for a dense matrix. c overlaps nothing that is read.
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
  // The heuristic's first choice whose order of sums is fixed: in one piece, or in parts that are
  // added in order and that gave the same bits three times.
  bool deterministic = false;
  bool autotune = true;   // times the heuristic's candidates; not if deterministic
  size_t alignment = 16;  // bytes: the most that the heuristic is told of operands, 16 to 256
};

// How products of one shape are computed, as data: what a checkpoint keeps, so that a resumed run
// computes the same bits. Means something to the same version of cuBLASLt on the same kind of GPU.
struct MatmulPlanRecord {
  std::string shape;  // names types, sizes, transposes, alignments, epilogue
  std::string plan;
  bool operator==(const MatmulPlanRecord&) const = default;
};

// Products with a plan for each shape: descriptors, algorithm, epilogue. A call that adds to c has
// another shape than one that overwrites it. A plan is made when its shape is met first, which must
// not be while a graph is captured; from then on a call allocates nothing on the host. With
// autotune, or if deterministic, that first call tries algorithms: it waits for the device, and
// writes c several times, the last time as if it were the only one; what it adds to is left as it
// is, and copied for the trial.
// Not for several threads at once.
class Matmul {
 public:
  // Loads cuBLASLt; throws a UserError where it is not to be had.
  explicit Matmul(const MatmulOptions& options = {});
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // What a call wants of workspace, aligned to 256 bytes: as cuBLAS takes on Hopper.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  // Enqueues. Throws CheckError, naming the shape, if cuBLASLt knows no way, or if a shape is
  // met first in a capture.
  void run(const MatmulArgs& args, const Tensor& workspace, cudaStream_t stream);

  // All plans that were made or loaded, ordered by shape.
  std::vector<MatmulPlanRecord> plans() const;
  // Plans for these shapes from the next call on; graphs captured before hold the former. One that
  // the library refuses, that another version made or that is damaged is passed over: the shape is
  // planned as if it were new.
  void load_plans(const std::vector<MatmulPlanRecord>& records);

  // What tuning measured, as a table with tabs between the columns: shape, candidate, algorithm,
  // tile, stages, splits, whether fused, milliseconds (the least), whether chosen. "" if nothing
  // was tuned.
  const std::string& tuning_log() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lathe::cuda
