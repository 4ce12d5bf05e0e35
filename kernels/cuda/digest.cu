// A digest of a matrix's bits: sum over words w of mix(word, place), modulo 2^64.
//
// Layout: a grid of blocks goes over all words, a thread takes one 16-bit word at a time. A block
// adds its sum to the digest by one atomic addition of integers, which commute.
// Roofline: memory-bound; run only while products are planned.
#include "kernels/cuda/digest.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/device/round.h"

namespace lathe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
__device__ __forceinline__ uint64_t mix(uint64_t word, uint64_t place) {
  uint64_t z = (place + 1) * 0x9e3779b97f4a7c15 + word;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

__global__ void __launch_bounds__(kThreads)
    digest_kernel(unsigned long long* digest, const uint16_t* matrix, int64_t words,
                  int64_t row_words, int64_t stride_words) {
  unsigned long long sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const uint16_t word = matrix[i / row_words * stride_words + i % row_words];
    sum += mix(word, static_cast<uint64_t>(i));
  }
  auto* scratch = reinterpret_cast<unsigned long long*>(ptx::shared_memory());
  sum = block_reduce<kThreads>(sum, scratch, Sum());
  if (threadIdx.x == 0) atomicAdd(digest, sum);
}

}  // namespace

void add_digest(uint64_t* digest, const void* matrix, int64_t rows, int64_t row_words,
                int64_t stride_words, cudaStream_t stream) {
  const int64_t words = rows * row_words;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, ceil_div(words, kThreads)));
  launch(digest_kernel,
         {dim3(blocks), dim3(kThreads), kThreads / kWarp * sizeof(unsigned long long)}, stream,
         reinterpret_cast<unsigned long long*>(digest), static_cast<const uint16_t*>(matrix), words,
         row_words, stride_words);
}

}  // namespace lathe::cuda
