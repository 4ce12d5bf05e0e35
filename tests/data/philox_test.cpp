#include "kernels/philox.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

using Words = std::array<uint32_t, 4>;

// Known answers of the authors' library, Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, PhiloxKey(0)),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                          PhiloxKey(0xffffffffffffffff)),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                          PhiloxKey(0x299f31d0a4093822)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, LaysOutSeedIndexSiteAndStep) {
  constexpr Words draw = philox(0x1122334455667788, 0x99aabbccddeeff00, 7, 9);
  EXPECT_EQ(draw, philox4x32_10({0xddeeff00, 0x99aabbcc, 7, 9}, PhiloxKey(0x1122334455667788)));
}

}  // namespace
}  // namespace lathe
