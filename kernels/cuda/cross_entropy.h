// The step of linear_cross_entropy between its matrix products, for one chunk of rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace lathe::cuda {

// losses_r = logsumexp(logits_rv[r, :vocab_size]) - logits_rv[r, target]. With `gradient`, the
// logits are replaced *in place* by dlogits = scale (softmax - onehot), rounded to T once. Row r of
// T starts where row r of the logits starts, so the leading dimension of dlogits, in elements of T,
// is padded_vocab for float and 2 padded_vocab for bf16. Columns vocab_size .. padded_vocab become
// 0. Targets below 0 give loss 0 and no gradient; targets from vocab_size on set their row to NaN.
struct CrossEntropyRows {
  float* logits_rv = nullptr;  // in: fp32 [rows, padded_vocab]; out: T, as above
  float* losses_r = nullptr;   // out: fp32 [rows]
  const int32_t* targets_r = nullptr;
  int64_t rows = 0, vocab_size = 0, padded_vocab = 0;
  double scale = 1;
  bool gradient = true;
};
template <typename T>
void cross_entropy_rows(const CrossEntropyRows& args, const Context& context);

// Whether cross_entropy_rows uses its resident kernel, which reads each row once and keeps it in
// shared memory. Depends on sizes, alignment and the context's shared memory. Both kernels give the
// same bits.
bool rows_are_resident(const CrossEntropyRows& args, const Context& context);

// results->loss += scale * sum of losses_n, in double and in an order that depends on `rows` alone.
// Called once for all chunks, after the last.
void add_losses(const float* losses_n, int64_t rows, double scale, StepResults* results,
                cudaStream_t stream);

}  // namespace lathe::cuda
