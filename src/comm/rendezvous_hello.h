// The messages between ranks and rank 0 at an address, in the host's byte order:
//   rank to rank 0   Hello
//   rank 0 to rank   the token's second half (kHalf bytes), then the shared data
//   rank to rank 0   kThanks: everything has arrived
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace lathe {

constexpr uint64_t kGreeting = 0x6c61746865206832;  // "lathe h2": other programs do not send it
constexpr char kThanks = 'k';

// Each side shows one half of the token, so that an impostor, listening as rank 0 or connecting as
// a rank, never sees both. Padded with zeros; all zeros without a token.
constexpr size_t kHalf = 64;
using TokenHalf = std::array<char, kHalf>;
struct TokenHalves {
  TokenHalf rank_shows{}, rank_0_shows{};
};
inline TokenHalves halves_of(const std::string& token) {
  TokenHalves halves;
  const size_t middle = token.size() / 2;
  std::copy_n(token.begin(), middle, halves.rank_shows.begin());
  std::copy_n(token.begin() + static_cast<std::ptrdiff_t>(middle), token.size() - middle,
              halves.rank_0_shows.begin());
  return halves;
}

struct Hello {
  uint64_t greeting = kGreeting;
  uint64_t process = 0;  // random, to tell apart two that claim the same rank
  int32_t rank = 0, size = 0;
  TokenHalf token{};
};
static_assert(sizeof(Hello) == 24 + kHalf && std::is_trivially_copyable_v<Hello>);

}  // namespace lathe
