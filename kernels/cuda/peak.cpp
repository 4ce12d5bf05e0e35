#include "kernels/cuda/peak.h"

namespace lathe::cuda {

double peak_flops(std::string_view gpu, DType dtype) {
  // From NVIDIA's data sheets. The first entry whose name is part of the GPU's name wins.
  struct Peak {
    std::string_view name;
    double bf16, fp32;  // TFLOP/s
  };
  static constexpr Peak kPeaks[] = {
      {"H200", 989.4, 66.9}, {"H100 PCIe", 756.5, 51.2}, {"H100 NVL", 835.5, 60.0},
      {"H100", 989.4, 66.9}, {"A100", 312, 19.5},        {"A40", 149.7, 37.4},
      {"L40S", 362, 91.6},   {"RTX 4090", 165.2, 82.6},  {"RTX 3090", 71.2, 35.6},
  };
  for (const Peak& peak : kPeaks) {
    if (gpu.find(peak.name) == std::string_view::npos) continue;
    return 1e12 * (dtype == DType::bf16 ? peak.bf16 : dtype == DType::fp32 ? peak.fp32 : 0);
  }
  return 0;
}

}  // namespace lathe::cuda
