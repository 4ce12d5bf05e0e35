// The instructions that C++ cannot express, one small function each. Nothing else in lathe contains
// inline assembly or tests __CUDA_ARCH__. kernels/cuda_on_cpu has a version of this file in plain
// C++ over the 32 lanes of a warp; the kernels are the same for both.
//
// Fragments follow the PTX manual's "Matrix Fragments for mma.m16n8k16" (bf16): lane l, with
// row = l / 4 and column = l % 4 * 2, holds
//   A [16, 16]: a[0] (row, column..+1), a[1] (row + 8, column), a[2] (row, column + 8),
//               a[3] (row + 8, column + 8)
//   B [16, 8]:  b[0] (k = column..+1, n = row), b[1] (k = column + 8, n = row)
//   D [16, 8]:  d[0], d[1] (row, column..+1), d[2], d[3] (row + 8, column..+1)
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace lathe::cuda::ptx {

// The block's dynamic shared memory, aligned to 1024 bytes, of the size that the launch requested.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char lathe_shared_memory[];
  return lathe_shared_memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads matrices of 8 x 8 16-bit elements. Lanes 8 i .. 8 i + 7 give the addresses (shared memory,
// multiples of 16 bytes) of the eight rows of matrix i. Lane l receives the elements
// (l / 4, l % 4 * 2..+1) of each matrix, or with _trans those of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b on tensor cores: [16, 16] x [16, 8] in bf16, sums in fp32.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Reads blockIdx.x again, so that values computed from it need not stay in registers.
__device__ __forceinline__ unsigned block_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// Stores 16 bytes to global memory, aligned to 16, in one instruction: nvcc may split a vector of
// two-byte elements.
__device__ __forceinline__ void store_16(void* global, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// Starts to copy 16 bytes from global to shared memory, both aligned to 16; writes zeros if !valid
// (then `global` is not read, but must be an address). The copy is complete once its group has been
// waited for *and* the block has passed a barrier.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's newest groups are still pending.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- wgmma: products of a warpgroup, which is four warps, on Hopper (compute capability 9.0
// alone).
//
// They run beside the threads. From the call until the group that it was committed with has been
// waited for, its registers and shared memory must not change, and its sums must not be read.
// warpgroup_arrive() orders registers; call it before the first wgmma and after each wait. Shared
// memory that threads have written (by cp.async, too) is visible to wgmma after fence_async_proxy()
// by the threads that wrote it and a barrier. The macros spare 32 operands a function; they end
// with this section.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define LATHE_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define LATHE_HOPPER_ASM(...) __trap()  // never launched on this architecture
#endif

// "Matrix descriptor" of a tile of bf16 in shared memory with 64 columns, swizzled by 128 bytes:
// its rows of 128 bytes are permuted as attention_tile.cuh describes. It begins at a multiple of
// 1024 bytes.
class MatrixDescriptor {
 public:
  // PTX manual, "Matrix descriptor": address / 16; 1024 / 16, the stride from eight rows to the
  // next eight, at bit 32; swizzling by 128 bytes at bit 62.
  explicit __device__ __forceinline__ MatrixDescriptor(const void* tile)
      : bits_((shared_address(tile) & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 |
              uint64_t{1} << 62) {}
  // The same from row `row`, a multiple of 8, and column `column`, a multiple of 16.
  __device__ __forceinline__ MatrixDescriptor from(int row, int column) const {
    MatrixDescriptor moved = *this;
    moved.bits_ += row * 8 + column / 8;
    return moved;
  }
  __device__ __forceinline__ uint64_t bits() const { return bits_; }

 private:
  uint64_t bits_;
};

#define LATHE_D64(d)                                                                       \
  "+f"((d)[0][0]), "+f"((d)[0][1]), "+f"((d)[0][2]), "+f"((d)[0][3]), "+f"((d)[1][0]),     \
      "+f"((d)[1][1]), "+f"((d)[1][2]), "+f"((d)[1][3]), "+f"((d)[2][0]), "+f"((d)[2][1]), \
      "+f"((d)[2][2]), "+f"((d)[2][3]), "+f"((d)[3][0]), "+f"((d)[3][1]), "+f"((d)[3][2]), \
      "+f"((d)[3][3]), "+f"((d)[4][0]), "+f"((d)[4][1]), "+f"((d)[4][2]), "+f"((d)[4][3]), \
      "+f"((d)[5][0]), "+f"((d)[5][1]), "+f"((d)[5][2]), "+f"((d)[5][3]), "+f"((d)[6][0]), \
      "+f"((d)[6][1]), "+f"((d)[6][2]), "+f"((d)[6][3]), "+f"((d)[7][0]), "+f"((d)[7][1]), \
      "+f"((d)[7][2]), "+f"((d)[7][3])
#define LATHE_D64_NAMES                                                                         \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

// d = a b^T, or d += a b^T with `add`, of 16 columns of a and b: [64, 16] x [64, 16]^T. Warp w of
// the four has rows 16 w .. 16 w + 15 of d, as D of eight mma: d[n][i].
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[8][4], const MatrixDescriptor& a,
                                                const MatrixDescriptor& b, bool add) {
  LATHE_HOPPER_ASM(
      "{.reg .pred add; setp.ne.b32 add, %34, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LATHE_D64_NAMES
      ", %32, %33, add, 1, 1, 0, 0;}"
      : LATHE_D64(d)
      : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)));
}

// d += a b of 16 rows of b: a [64, 16] as A of an mma in each warp, b [16, 64].
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[8][4], const uint32_t (&a)[4],
                                                const MatrixDescriptor& b) {
  LATHE_HOPPER_ASM(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LATHE_D64_NAMES
      ", {%32, %33, %34, %35}, %36, add, 1, 1, 1;}"
      : LATHE_D64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()));
}

namespace detail {
__device__ __forceinline__ void settle(float (&d)[8][4]) {
  asm volatile("" : LATHE_D64(d)::"memory");
}
template <int kK>
__device__ __forceinline__ void settle(uint32_t (&a)[kK][4]) {
#pragma unroll
  for (int k = 0; k < kK; ++k)
    asm volatile("" : "+r"(a[k][0]), "+r"(a[k][1]), "+r"(a[k][2]), "+r"(a[k][3])::"memory");
}
}  // namespace detail

// wgmma.fence, which CUTLASS calls warpgroup_arrive.
__device__ __forceinline__ void warpgroup_arrive() {
  LATHE_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() {
  LATHE_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the newest groups are still pending. Names the sums and the
// left factors of those that are then complete, so that the compiler neither reads the one nor
// reuses the other before.
template <int kPending, typename... Registers>
__device__ __forceinline__ void warpgroup_wait(Registers&... complete) {
  LATHE_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (detail::settle(complete), ...);
}
__device__ __forceinline__ void fence_async_proxy() {
  LATHE_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

#undef LATHE_HOPPER_ASM
#undef LATHE_D64
#undef LATHE_D64_NAMES

// ---- Arithmetic.

// Adds value * 2^(shift % 32), with value < 2^48, to a number of 96 bits: to `low` if shift is
// below 32, otherwise to `high`. The compiler would use about twice as many instructions.
__device__ __forceinline__ void add_shifted(uint32_t (&low)[3], uint32_t (&high)[3], uint64_t value,
                                            int shift) {
  const auto bottom = static_cast<uint32_t>(value), top = static_cast<uint32_t>(value >> 32);
  asm("{.reg .pred up; .reg .b32 a, b, c;"
      "setp.ge.s32 up, %8, 32;"
      "shf.l.wrap.b32 a, 0, %6, %8; shf.l.wrap.b32 b, %6, %7, %8; shf.l.wrap.b32 c, %7, 0, %8;"
      "@!up add.cc.u32 %0, %0, a; @!up addc.cc.u32 %1, %1, b; @!up addc.u32 %2, %2, c;"
      "@up add.cc.u32 %3, %3, a; @up addc.cc.u32 %4, %4, b; @up addc.u32 %5, %5, c;}"
      : "+r"(low[0]), "+r"(low[1]), "+r"(low[2]), "+r"(high[0]), "+r"(high[1]), "+r"(high[2])
      : "r"(bottom), "r"(top), "r"(shift));
}

// 2^x, within 2 ulp; 0 for -infinity.
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace lathe::cuda::ptx
