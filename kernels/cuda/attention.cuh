// Shared by the attention kernels: shapes, dropout masks, and the kernels that take any head size.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/device/round.h"
#include "kernels/ops.h"

namespace lathe::cuda::attention {

inline constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

// qkv is [B, T, 3 C], each of q, k, v [H, D]. Passed to kernels by value.
struct Sizes {
  Sizes(const Tensor& qkv, int64_t n_head) {
    LATHE_CHECK(qkv.shape.rank == 3, "qkv is {}", to_string(qkv.shape));
    B = qkv.shape[0], T = qkv.shape[1], C = qkv.shape[2] / 3, H = n_head;
    LATHE_CHECK(H > 0 && C > 0 && 3 * C == qkv.shape[2] && C % H == 0, "qkv is {}, {} heads",
                to_string(qkv.shape), H);
    D = C / H;
    scale = 1.0f / std::sqrt(static_cast<float>(D));
  }
  int64_t B, T, C, H, D;
  float scale;  // of scores
};

// The size of a grid: kernels count blocks in 32 bits.
inline unsigned grid_of(int64_t blocks) {
  LATHE_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "{} blocks", blocks);
  return static_cast<unsigned>(blocks);
}

// The mask of one head, whose element (query, key) is first + query T + key.
class HeadMask {
 public:
  // Reads nothing if there is no dropout.
  __device__ __forceinline__ HeadMask(const DropoutMask& mask, const Sizes& s, int64_t head)
      : T_(static_cast<uint64_t>(s.T)),
        place_(mask.place),
        threshold_(mask.threshold),
        scale_(mask.scale) {
    if (!mask.active) return;
    seed_ = mask.inputs->seed, step_ = mask.inputs->step;
    const uint64_t heads_before = mask.inputs->first_sequence * static_cast<uint64_t>(s.H);
    first_ = (heads_before + static_cast<uint64_t>(head)) * T_ * T_;
  }

  // Of kept values.
  __device__ __forceinline__ float scale() const { return scale_; }
  // Whether groups of four mask elements match groups of four keys from a multiple of four on.
  __device__ __forceinline__ bool aligned() const { return T_ % 4 == 0; }

  // Bit i of the result: whether element 4 j + i is kept, in the group 4 j .. 4 j + 3 that contains
  // (query, key).
  __device__ __forceinline__ uint32_t group(int query, int key) const {
    const auto words = philox(seed_, element(query, key) / 4, place_, step_);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= words[i] >= threshold_ ? 1u << i : 0u;
    return bits;
  }
  __device__ __forceinline__ bool keeps(int query, int key) const {
    return group(query, key) >> (element(query, key) % 4) & 1;
  }

 private:
  __device__ __forceinline__ uint64_t element(int query, int key) const {
    return first_ + static_cast<uint64_t>(query) * T_ + static_cast<unsigned>(key);
  }

  uint64_t seed_ = 0, first_ = 0, T_;
  uint32_t step_ = 0, place_, threshold_;
  float scale_;
};

// What the backward pass needs per query, kept in workspace: [B H, padded T].
struct alignas(8) RowStatistics {
  float logsumexp;  // times a factor, +infinity past T
  float delta;      // dout . out, the sum over keys of dP P; 0 past T
};
inline constexpr int64_t kStatisticsRows = 64;  // T is padded to a multiple of it
constexpr int64_t padded_rows(int64_t T) {
  return round_up(T, kStatisticsRows);
}

// The largest head sizes: for the kernels on tensor cores, and for those that take any number type.
inline constexpr int64_t kLargestFlashHead = 128, kLargestPlainHead = 256;

// One head of the plain kernels: query q is at position past + q and attends to keys 0 .. past + q.
template <typename T>
struct PlainForward {
  const T *q, *k, *v;  // of sequence 0, head 0
  T* out;
  float* logsumexp;                         // or null
  int64_t q_stride, kv_stride, out_stride;  // from one position to the next
  int64_t q_batch, kv_batch, out_batch;     // from one sequence to the next
  int64_t past;
};
template <typename T>
struct PlainBackward {
  const T *qkv, *dout;
  const RowStatistics* statistics;
  T* dqkv;
};

// Attention without tensor cores, in attention_plain.cu.
template <typename T>
void plain_forward(const PlainForward<T>& args, const Sizes& sizes, const DropoutMask& mask,
                   cudaStream_t stream);
template <typename T>
void plain_backward(const PlainBackward<T>& args, const Sizes& sizes, const DropoutMask& mask,
                    cudaStream_t stream);

}  // namespace lathe::cuda::attention
