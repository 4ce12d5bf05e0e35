// The CUDA execution model on the CPU: what a kernel sees when g++ compiles it. The build includes
// this file before every .cu (-include), so the sources do not mention it.
//
// Each thread of a block is a fiber; one OS thread runs all of them, block after block. Fibers
// switch only where CUDA synchronizes threads (barriers, warp intrinsics) and at their end. A seed
// determines which runs next. A synchronization that cannot happen is an error that names kernel,
// block, thread and line.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <utility>

namespace lathe::cuda_on_cpu {

using Site = std::source_location;

// Synchronizes lanes of a warp: each lane of `mask` calls this with a record of its own. The last
// to arrive runs combine(records, mask), where records[lane] is that lane's, before any continues.
using Combine = void (*)(void* const* records, unsigned mask);
void meet_warp(unsigned mask, const char* what, void* record, Combine combine, const Site& site);
void meet_block(const Site& site);  // __syncthreads

unsigned char* shared_memory();

// Whether [address, address + bytes) lies in the block's shared memory.
bool is_shared_memory(const void* address, size_t bytes);

// cp.async: copies at once or when it is waited for, depending on the seed.
void copy_async(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);

// wgmma: `perform` runs as meet_warp's combine over copies of the lanes' records, at once or when
// its group is waited for, depending on the seed.
inline constexpr size_t kLateRecordBytes = 64;
void arrive_for_wgmma();
void enqueue_wgmma(const void* record, size_t bytes, Combine perform, const Site& site);
void commit_wgmma();
void wait_for_wgmma(int pending, const Site& site);

// Puts a kernel into its stream.
cudaError_t enqueue_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                           std::function<void()> thread_body);
cudaError_t allow_shared_memory(const void* kernel, cudaFuncAttribute attribute, int value);

template <typename... Parameters, typename... Args>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                          Args&&... args) {
  // The arguments are copied now, as in a real launch.
  return enqueue_kernel(*config, reinterpret_cast<const void*>(kernel),
                        [kernel, copies = std::tuple<Parameters...>(std::forward<Args>(args)...)] {
                          std::apply(kernel, copies);
                        });
}

// ---- Warp intrinsics.

template <typename T>
struct Exchange {
  T value;
  int source;  // lane to read from
  static void combine(void* const* records, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto* mine = static_cast<Exchange*>(records[lane]);
      auto* theirs = static_cast<Exchange*>(records[mine->source & 31]);
      // A value from a lane outside the mask is undefined: poison.
      if (theirs) {
        mine->received = theirs->value;
      } else {
        std::memset(static_cast<void*>(&mine->received), 0xff, sizeof(T));
      }
    }
  }
  T received{};
};

template <typename T>
T exchange(unsigned mask, T value, int source, const char* what, const Site& site) {
  Exchange<T> record{value, source};
  meet_warp(mask, what, &record, Exchange<T>::combine, site);
  return record.received;
}

struct Vote {
  bool predicate;
  unsigned ballot = 0;
  static void combine(void* const* records, unsigned mask) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1)
        ballot |= unsigned{static_cast<Vote*>(records[lane])->predicate} << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) static_cast<Vote*>(records[lane])->ballot = ballot;
  }
};

struct Match {
  uint64_t value;
  unsigned peers = 0;
  static void combine(void* const* records, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto* mine = static_cast<Match*>(records[lane]);
      for (int other = 0; other < 32; ++other)
        if (mask >> other & 1 && static_cast<Match*>(records[other])->value == mine->value)
          mine->peers |= 1u << other;
    }
  }
};

int lane_of_thread();

}  // namespace lathe::cuda_on_cpu

// What the kernels' compiler provides.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

using std::isfinite, std::isinf, std::isnan;

#define __launch_bounds__(...)
#define cudaLaunchKernelEx ::lathe::cuda_on_cpu::launch_kernel

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return lathe::cuda_on_cpu::allow_shared_memory(reinterpret_cast<const void*>(kernel), attribute,
                                                 value);
}

inline void __syncthreads(const std::source_location& site = std::source_location::current()) {
  lathe::cuda_on_cpu::meet_block(site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const std::source_location& site = std::source_location::current()) {
  int nothing = 0;
  lathe::cuda_on_cpu::meet_warp(
      mask, "__syncwarp", &nothing, [](void* const*, unsigned) {}, site);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const std::source_location& site = std::source_location::current()) {
  const int lane = lathe::cuda_on_cpu::lane_of_thread();
  return lathe::cuda_on_cpu::exchange(mask, value, (lane & ~(width - 1)) | (source & (width - 1)),
                                      "__shfl_sync", site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const std::source_location& site = std::source_location::current()) {
  const int lane = lathe::cuda_on_cpu::lane_of_thread();
  const int source = lane ^ lane_mask;
  const bool same_segment = (source & ~(width - 1)) == (lane & ~(width - 1));
  return lathe::cuda_on_cpu::exchange(mask, value, same_segment ? source : lane, "__shfl_xor_sync",
                                      site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const std::source_location& site = std::source_location::current()) {
  const int lane = lathe::cuda_on_cpu::lane_of_thread();
  const int within = (lane & (width - 1)) + static_cast<int>(delta);
  return lathe::cuda_on_cpu::exchange(mask, value,
                                      within < width ? lane + static_cast<int>(delta) : lane,
                                      "__shfl_down_sync", site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const std::source_location& site = std::source_location::current()) {
  const int lane = lathe::cuda_on_cpu::lane_of_thread();
  const int within = (lane & (width - 1)) - static_cast<int>(delta);
  return lathe::cuda_on_cpu::exchange(
      mask, value, within >= 0 ? lane - static_cast<int>(delta) : lane, "__shfl_up_sync", site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const std::source_location& site = std::source_location::current()) {
  lathe::cuda_on_cpu::Vote vote{predicate != 0};
  lathe::cuda_on_cpu::meet_warp(mask, "vote", &vote, lathe::cuda_on_cpu::Vote::combine, site);
  return vote.ballot;
}
// The lanes of `mask` that pass the same integer.
template <typename T>
unsigned __match_any_sync(unsigned mask, T value,
                          const std::source_location& site = std::source_location::current()) {
  static_assert(std::is_integral_v<T>);
  lathe::cuda_on_cpu::Match match{static_cast<uint64_t>(value)};
  lathe::cuda_on_cpu::meet_warp(mask, "match", &match, lathe::cuda_on_cpu::Match::combine, site);
  return match.peers;
}
inline int __any_sync(unsigned mask, int predicate,
                      const std::source_location& site = std::source_location::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      const std::source_location& site = std::source_location::current()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// ---- Atomics and fences: between two synchronizations only one thread runs.

template <typename T>
T atomicAdd(T* address, T value) {
  return std::exchange(*address, static_cast<T>(*address + value));
}
template <typename T>
T atomicMax(T* address, T value) {
  return std::exchange(*address, *address > value ? *address : value);
}
template <typename T>
T atomicMin(T* address, T value) {
  return std::exchange(*address, *address < value ? *address : value);
}
template <typename T>
T atomicExch(T* address, T value) {
  return std::exchange(*address, value);
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}
// Wraps to 0 after `limit`.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return std::exchange(*address, *address >= limit ? 0 : *address + 1);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Arithmetic for which g++ has other names.

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}

namespace lathe::cuda_on_cpu {

// As inexact as NVIDIA's manuals allow the fast units to be, within `ulps`; the result's bits
// decide the direction. Powers of two are exact, and results that are not normal become zero.
inline float approximated(float exact, uint32_t ulps) {
  const uint32_t bits = std::bit_cast<uint32_t>(exact), mantissa = bits & 0x7fffff;
  if (std::fabs(exact) < 0x1p-126f) return std::copysign(0.0f, exact);
  if (!std::isfinite(exact) || mantissa < ulps || mantissa > 0x7fffff - ulps) return exact;
  return std::bit_cast<float>(bits - ulps + (bits * 0x9e3779b9u >> 16) % (2 * ulps + 1));
}
// ex2.approx.ftz
inline float exp2_approximated(float x) {
  return approximated(std::exp2(x), 2);
}

}  // namespace lathe::cuda_on_cpu

inline float __expf(float x) {
  return lathe::cuda_on_cpu::exp2_approximated(x * 1.44269504f);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __fdividef(float a, float b) {
  if (std::fabs(b) > 0x1p126f && !std::isinf(b)) return a * 0.0f;
  return a * lathe::cuda_on_cpu::approximated(1 / b, 1);
}
inline float __frcp_rn(float x) {
  return 1 / x;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float rsqrtf(float x) {
  return 1 / std::sqrt(x);
}
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
