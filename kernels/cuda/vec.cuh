// Vectors of elements that move in one instruction, and conversions between storage and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

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
// As a value that is stored as T and read back.
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

// How many T make 16 bytes.
template <typename T>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(T));

// kN neighbours as floats: 16 bytes at a time where kN is 8, one by one where it is 1.
inline constexpr int kEight = 8;
template <int kN, typename T>
__device__ __forceinline__ void load_floats(const T* from, float (&x)[kN]) {
  constexpr int kPart = kN < kVec<T> ? kN : kVec<T>;
#pragma unroll
  for (int first = 0; first < kN; first += kPart) {
    const auto part = Vec<T, kPart>::load(from + first);
#pragma unroll
    for (int i = 0; i < kPart; ++i) x[first + i] = to_float(part.at[i]);
  }
}
// Each rounded to T.
template <int kN, typename T>
__device__ __forceinline__ void store_floats(const float (&x)[kN], T* to) {
  constexpr int kPart = kN < kVec<T> ? kN : kVec<T>;
#pragma unroll
  for (int first = 0; first < kN; first += kPart) {
    Vec<T, kPart> part;
#pragma unroll
    for (int i = 0; i < kPart; ++i) part.at[i] = from_float<T>(x[first + i]);
    part.store(to + first);
  }
}

// Whether rows of `columns` elements that start at `data` can be read 16 bytes at a time. Host code
// chooses an instance of a kernel by it.
template <typename T>
inline bool vectorizes(const void* data, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % kVec<T> == 0;
}
// The same for eights of elements, of every tensor named; an absent one is no obstacle.
template <typename... Pointers>
inline bool eights(int64_t columns, const Pointers*... data) {
  return columns % kEight == 0 && ((reinterpret_cast<uintptr_t>(data) % 16 == 0) && ...);
}

}  // namespace lathe::cuda
