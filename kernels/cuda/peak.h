// What a GPU can do at most, as its maker says: the denominator of MFU.
#pragma once

#include <string_view>

#include "kernels/device/dtype.h"

namespace lathe::cuda {

// Dense FLOP/s of matrix products in this number type (sums in fp32, no sparsity, no TF32), by the
// name that the driver gives the GPU; 0 where it is not known.
double peak_flops(std::string_view gpu, DType dtype);

}  // namespace lathe::cuda
