// What lies in the host's memory instead of the device's (--offload; Ren et al., "ZeRO-Offload",
// 2021).
#pragma once

#include "kernels/device/device.h"

namespace lathe {

struct Offload {
  // Masters and moments: AdamW reads and writes them over the bus. Masters that are the weights
  // stay with these.
  MemorySpace states = MemorySpace::device;
  bool inputs = false;  // of layers (src/model/input_offload.h)
  // This rank's share of the layers' weights, at stage 3 (src/parallel/weight_gathering.h).
  MemorySpace weights = MemorySpace::device;
};

}  // namespace lathe
