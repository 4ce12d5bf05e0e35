#include "kernels/philox.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

void expect_draw(Philox counter, uint32_t key0, uint32_t key1, Philox expected) {
  const Philox draw = philox4x32_10(counter, key0, key1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(draw.v[i], expected.v[i]) << i;
}

// The known answers of the authors' library, Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  expect_draw({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect_draw({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
              {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_draw({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, LaysOutSeedIndexSiteAndStep) {
  constexpr Philox draw = philox(0x1122334455667788, 0x99aabbccddeeff00, 7, 9);
  expect_draw({{0xddeeff00, 0x99aabbcc, 7, 9}}, 0x55667788, 0x11223344, draw);
}

}  // namespace
}  // namespace lathe
