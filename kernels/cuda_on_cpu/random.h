// The seeded choices of the stand-ins: SplitMix64 (Steele et al., 2014).
#pragma once

#include <cstdint>

namespace lathe::cuda_on_cpu {

class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Below `bound`, nearly uniform.
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

}  // namespace lathe::cuda_on_cpu
