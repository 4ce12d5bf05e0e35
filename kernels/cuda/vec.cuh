// Vectors of elements that one instruction moves, and conversions between storage and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/ptx.cuh"

namespace lathe::cuda {

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}
// The value after it is stored as T and read back.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// N elements, aligned to their size: loads and stores are single instructions up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T at[N];

  static __device__ __forceinline__ Vec load(const T* from) {
    return *reinterpret_cast<const Vec*>(from);
  }
  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<Vec*>(to) = *this; }
};

// How many elements of T make 16 bytes.
template <typename T>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(T));

// Elements that a thread takes at a time in a vectorised kernel: 16 bytes of bf16, 32 bytes of
// fp32.
inline constexpr int kVectorWidth = 8;

// kN neighbours as stored, so that loads can come before the arithmetic: 16 bytes at a time if kN
// is kVectorWidth, one by one if it is 1.
template <typename T, int kN>
struct Stored {
  static constexpr int kPart = kN < kVec<T> ? kN : kVec<T>;
  Vec<T, kPart> parts[kN / kPart];

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int p = 0; p < kN / kPart; ++p) parts[p] = Vec<T, kPart>::load(from + p * kPart);
  }
  // To global memory.
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int p = 0; p < kN / kPart; ++p) {
      if constexpr (sizeof(parts[p]) == 16) {
        uint32_t words[4];
        memcpy(words, parts[p].at, sizeof(words));
        ptx::store_16(to + p * kPart, words);
      } else {
        parts[p].store(to + p * kPart);
      }
    }
  }
  __device__ __forceinline__ float at(int i) const {
    return to_float(parts[i / kPart].at[i % kPart]);
  }
  // Rounds x to T.
  __device__ __forceinline__ void set(int i, float x) {
    parts[i / kPart].at[i % kPart] = from_float<T>(x);
  }
};
// The same as floats.
template <int kN, typename T>
__device__ __forceinline__ void load_floats(const T* from, float (&x)[kN]) {
  Stored<T, kN> stored;
  stored.load(from);
#pragma unroll
  for (int i = 0; i < kN; ++i) x[i] = stored.at(i);
}
// Each rounded to T.
template <int kN, typename T>
__device__ __forceinline__ void store_floats(const float (&x)[kN], T* to) {
  Stored<T, kN> stored;
#pragma unroll
  for (int i = 0; i < kN; ++i) stored.set(i, x[i]);
  stored.store(to);
}

// Whether rows of `columns` elements that start at `data` can be read 16 bytes at a time. Host code
// uses it to choose an instance of a kernel.
template <typename T>
inline bool vectorizes(const void* data, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % kVec<T> == 0;
}
// Whether a kernel may take kVectorWidth elements at a time of every tensor given: their rows have
// `columns` elements, and absent tensors do not matter.
template <typename... Pointers>
inline bool can_vectorize(int64_t columns, const Pointers*... data) {
  return columns % kVectorWidth == 0 && ((reinterpret_cast<uintptr_t>(data) % 16 == 0) && ...);
}

}  // namespace lathe::cuda
