// From a number type known at run time to the C++ type.
#pragma once

#include "kernels/device/dtype.h"

namespace lathe {

// Calls function with a value of the C++ type of dtype.
template <typename Function>
auto with_type(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::fp32:
      return function(float{});
    case DType::bf16:
      return function(bf16{});
    case DType::fp64:
      return function(double{});
    case DType::int32:
      return function(int32_t{});
    case DType::int64:
      return function(int64_t{});
    case DType::uint8:
      break;
  }
  return function(uint8_t{});
}

}  // namespace lathe
