// Dropout masks (the definition is with Dropout in kernels/ops.h), sixteen Philox counters at a
// time so that the rounds become vector code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/philox.h"

namespace lathe {

// A Dropout with what the step tells it. With p == 0 it is off and reads nothing.
class DropoutMask {
 public:
  explicit DropoutMask(const Dropout& dropout) : p_(dropout.p) {
    LATHE_CHECK(p_ >= 0 && p_ < 1, "dropout {}", p_);
    if (p_ == 0) return;
    LATHE_CHECK(dropout.inputs != nullptr);
    threshold_ = static_cast<uint32_t>(std::ceil(static_cast<double>(p_) * 4294967296.0));
    place_ = dropout.layer * 8 + static_cast<uint32_t>(dropout.site);
    step_ = dropout.inputs->step;
    seed_ = dropout.inputs->seed;
    first_sequence_ = dropout.inputs->first_sequence;
  }

  explicit operator bool() const { return p_ > 0; }
  uint64_t first_sequence() const { return first_sequence_; }

  // 1 / (1 - p): what kept values are multiplied by.
  template <typename A>
  A keep_scale() const {
    return A(1) / (A(1) - static_cast<A>(p_));
  }

  // The multipliers of mask elements first .. first + count: 0 where dropped, else keep_scale().
  template <typename A>
  void scales(uint64_t first, int64_t count, A* out) const {
    const A keep = keep_scale<A>();
    uint32_t words[kWords];
    for (int64_t done = 0; done < count;) {
      const uint64_t element = first + static_cast<uint64_t>(done);
      const int skip = static_cast<int>(element % 4);
      generate(element / 4, words);
      const int64_t n = std::min<int64_t>(kWords - skip, count - done);
      A* to = out + done;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = words[skip + i] < threshold_ ? A(0) : keep;
      done += n;
    }
  }

 private:
  static constexpr int kCounters = 16;
  static constexpr int kWords = 4 * kCounters;

  void generate(uint64_t group, uint32_t* words) const {
    const PhiloxKey key(seed_);
#pragma omp simd
    for (int i = 0; i < kCounters; ++i) {
      const uint64_t g = group + static_cast<uint64_t>(i);
      uint32_t c0 = static_cast<uint32_t>(g), c1 = static_cast<uint32_t>(g >> 32);
      uint32_t c2 = place_, c3 = step_, k0 = key.low, k1 = key.high;
      for (int round = 0; round < 10; ++round) {  // philox4x32_10, spelt out for the vectoriser
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
      }
      words[4 * i] = c0;
      words[4 * i + 1] = c1;
      words[4 * i + 2] = c2;
      words[4 * i + 3] = c3;
    }
  }

  float p_ = 0;
  uint32_t threshold_ = 0, place_ = 0, step_ = 0;
  uint64_t seed_ = 0, first_sequence_ = 0;
};

// Channels that a kernel draws masks for at a time, into a buffer on its stack.
inline constexpr int64_t kMaskChunk = 256;

}  // namespace lathe
