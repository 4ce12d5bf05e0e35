// Dropout masks (Dropout in kernels/ops.h defines them), sixteen Philox counters at a time, so that
// the rounds become vector code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/philox.h"

namespace lathe::cpu {

inline constexpr int kPhiloxCounters = 16, kPhiloxWords = 4 * kPhiloxCounters;

// The words of philox4x32_10({g low, g high, place, step}, key) for kPhiloxCounters groups g from
// `group`, one group after the other.
void philox_words(uint64_t group, uint32_t place, uint32_t step, PhiloxKey key, uint32_t* words);

// A Dropout with the step's inputs. With p == 0 it is off and reads nothing.
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

  // 1 / (1 - p): the factor of kept values.
  template <typename A>
  A keep_scale() const {
    return A(1) / (A(1) - static_cast<A>(p_));
  }

  // The factors of mask elements first .. first + count: 0 if dropped, else keep_scale().
  template <typename A>
  void scales(uint64_t first, int64_t count, A* out) const {
    const A keep = keep_scale<A>();
    uint32_t words[kPhiloxWords];
    for (int64_t done = 0; done < count;) {
      const uint64_t element = first + static_cast<uint64_t>(done);
      const int skip = static_cast<int>(element % 4);
      philox_words(element / 4, place_, step_, PhiloxKey(seed_), words);
      const int64_t n = std::min<int64_t>(kPhiloxWords - skip, count - done);
      A* to = out + done;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = words[skip + i] < threshold_ ? A(0) : keep;
      done += n;
    }
  }

 private:
  float p_ = 0;
  uint32_t threshold_ = 0, place_ = 0, step_ = 0;
  uint64_t seed_ = 0, first_sequence_ = 0;
};

// Kernels draw masks for this many channels at a time, into a buffer on the stack.
inline constexpr int64_t kMaskChunk = 256;

}  // namespace lathe::cpu
