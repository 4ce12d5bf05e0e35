// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC'11). Pure functions: what is drawn depends on the key and the
// counter alone, so the same numbers come out on any device and at any number of ranks.
//
// All of lathe draws with key = seed. The counter is (index low, index high, site, step). Dropout's
// sites are layer * 8 + site, so they stay far below the ones named here.
#pragma once

#include <cstdint>

namespace lathe {

struct Philox {
  uint32_t v[4];
};

inline constexpr uint32_t kPhiloxSiteWindow = 0xffff'ffff;   // starts of random windows
inline constexpr uint32_t kPhiloxSiteShuffle = 0xffff'fffe;  // the shuffle of an epoch

// constexpr, so that nvcc takes it into kernels as it is (--expt-relaxed-constexpr).
constexpr Philox philox4x32_10(Philox counter, uint32_t key0, uint32_t key1) {
  uint32_t x0 = counter.v[0], x1 = counter.v[1], x2 = counter.v[2], x3 = counter.v[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * x0;
    const uint64_t b = uint64_t{0xCD9E8D57} * x2;
    x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(b);
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9;  // the golden ratio
    key1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return {{x0, x1, x2, x3}};
}

// The draw of (seed, index, site, step), laid out as above.
constexpr Philox philox(uint64_t seed, uint64_t index, uint32_t site, uint32_t step) {
  return philox4x32_10(
      {{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), site, step}},
      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace lathe
