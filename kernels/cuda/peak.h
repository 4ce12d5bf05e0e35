// Peak FLOP/s of GPUs by their maker's data sheets: the denominator of MFU.
#pragma once

#include <string_view>

#include "kernels/device/dtype.h"

namespace lathe::cuda {

// Dense FLOP/s of matrix products in this number type (sums in fp32, no sparsity, no TF32), by the
// GPU's name as the driver gives it; 0 if unknown.
double peak_flops(std::string_view gpu, DType dtype);

}  // namespace lathe::cuda
