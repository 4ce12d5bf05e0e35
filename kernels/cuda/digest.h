// Compares the bits of results without copying them to the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lathe::cuda {

// *digest += a sum, modulo 2^64, over the 16-bit words of a matrix of `rows` rows of `row_words`
// words, `stride_words` from one row to the next, each mixed with its place. The order of the
// additions does not matter. All pointers are to device memory.
void add_digest(uint64_t* digest, const void* matrix, int64_t rows, int64_t row_words,
                int64_t stride_words, cudaStream_t stream);

}  // namespace lathe::cuda
