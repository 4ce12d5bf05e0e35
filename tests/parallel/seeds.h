// The order in which the CPU that plays a GPU runs its streams; linked from seeds_cuda_on_cpu.cpp
// or seeds_none.cpp.
#pragma once

#include <cstdint>

namespace lathe::testing {

inline constexpr uint64_t kStreamSeeds = 50;  // for each of two cases

bool over_stand_ins();
void set_stream_seed(uint64_t seed);

}  // namespace lathe::testing
