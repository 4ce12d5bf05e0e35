// Philox4x32-10: a counter-based random generator (Salmon et al., "Parallel Random Numbers: As Easy
// as 1, 2, 3", SC 2011). The same counter and key give the same four words everywhere, so random
// numbers need no state: not for dropout, not for data windows, not across ranks or devices.
//
// All of lathe draws with key = seed and counter = (index low, index high, site, step). Dropout's
// sites are layer * 8 + site, so they stay far below the ones named here.
#pragma once

#include <array>
#include <cstdint>

namespace lathe {

inline constexpr uint32_t kPhiloxSiteWindow = 0xffff'ffff;    // starts of random windows
inline constexpr uint32_t kPhiloxSiteShuffle = 0xffff'fffe;   // the shuffle of an epoch
inline constexpr uint32_t kPhiloxSiteInit = 0xffff'fffd;      // initial weights, step = parameter
inline constexpr uint32_t kPhiloxSiteSample = 0xffff'fffc;    // tokens of a sampled text
inline constexpr uint32_t kPhiloxSiteRounding = 0xffff'fffb;  // weights, index = element / 4

struct PhiloxKey {
  uint32_t low, high;
  constexpr explicit PhiloxKey(uint64_t seed)
      : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)) {}
};

constexpr std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key.low,
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key.high,
               static_cast<uint32_t>(product0)};
    key.low += 0x9E3779B9;
    key.high += 0xBB67AE85;
  }
  return counter;
}

// The draw of (seed, index, site, step), laid out as above.
constexpr std::array<uint32_t, 4> philox(uint64_t seed, uint64_t index, uint32_t site,
                                         uint32_t step) {
  return philox4x32_10(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), site, step},
      PhiloxKey(seed));
}

}  // namespace lathe
