// Sums of products as a plain implementation computes them, on the CPU or on tensor cores.
#pragma once

#include <type_traits>

#include "kernels/cuda_on_cpu/tensor_cores.h"

namespace lathe::testing {

// A sum of products as a plain implementation computes it: one product after the other; or in fp32
// of bf16 factors, in the order of an A100's tensor cores.
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
      if (tensor_cores_) return cuda_on_cpu::truncated_sum(total_, step_);
    return total_;
  }

 private:
  bool tensor_cores_;
  int products_ = 0;
  A total_ = 0, step_ = 0;
};

}  // namespace lathe::testing
