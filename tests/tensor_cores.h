// How tensor cores add: the products of a few k at a time (4 on a V100, 8 on an A100, 16 on an
// H100) to a sum in fp32, which is not rounded then, but cut off. Over many k it errs towards zero,
// and by more than a sum that rounds after each product. Fasi, Higham, Mikaitis and Pranesh,
// "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science, 2021.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace lathe::testing {

inline float truncated_sum(float sum, float products) {
  const double exact = static_cast<double>(sum) + static_cast<double>(products);
  constexpr uint64_t kMantissaOfFloat = ~uint64_t{0} << 29;
  return static_cast<float>(
      std::bit_cast<double>(std::bit_cast<uint64_t>(exact) & kMantissaOfFloat));
}

// A sum of products as a plain implementation takes it: one after the other; or, in fp32 and of
// bf16, as the tensor cores of an A100 do.
template <typename A>
class PlainSum {
 public:
  explicit PlainSum(bool tensor_cores = false)
      : tensor_cores_(tensor_cores && std::is_same_v<A, float>) {}
  void add(A product) {
    (tensor_cores_ ? step_ : total_) += product;
    if (tensor_cores_ && ++products_ % 8 == 0) total_ = value(), step_ = 0;
  }
  A value() const {
    if constexpr (std::is_same_v<A, float>)
      if (tensor_cores_) return truncated_sum(total_, step_);
    return total_;
  }

 private:
  bool tensor_cores_;
  int products_ = 0;
  A total_ = 0, step_ = 0;
};

}  // namespace lathe::testing
