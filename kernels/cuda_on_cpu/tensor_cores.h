// How tensor cores add: they add the products of a few k at a time (4 on a V100, 8 on an A100, 16
// on an H100) to a sum in fp32, which they truncate instead of rounding. Over many k the sum errs
// towards zero, and by more than one that is rounded after each product. Fasi, Higham, Mikaitis and
// Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science, 2021.
#pragma once

#include <bit>
#include <cstdint>

namespace lathe::cuda_on_cpu {

inline float truncated_sum(float sum, float products) {
  const double exact = static_cast<double>(sum) + static_cast<double>(products);
  constexpr uint64_t kMantissaOfFloat = ~uint64_t{0} << 29;
  return static_cast<float>(
      std::bit_cast<double>(std::bit_cast<uint64_t>(exact) & kMantissaOfFloat));
}

}  // namespace lathe::cuda_on_cpu
