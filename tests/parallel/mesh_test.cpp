#include "src/parallel/mesh.h"

#include <set>
#include <utility>

#include "src/comm/imagined_ranks.h"
#include "tests/comm/harness.h"

namespace lathe::testing {
namespace {

// Every mesh of this many ranks.
std::vector<MeshShape> shapes_of(int64_t ranks) {
  std::vector<MeshShape> shapes;
  for (int64_t tp = 1; tp <= ranks; ++tp) {
    for (int64_t pp = 1; pp <= ranks; ++pp) {
      if (ranks % (tp * pp) == 0) shapes.push_back(mesh_shape(ranks, tp, pp));
    }
  }
  return shapes;
}

TEST(MeshShape, EveryRankHasAPlaceOfItsOwn) {
  for (const int64_t ranks : {1, 2, 6, 8, 512}) {
    for (const MeshShape& shape : shapes_of(ranks)) {
      EXPECT_EQ(shape.ranks(), ranks);
      std::set<std::vector<int64_t>> places;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const MeshPlace place = place_of(rank, shape);
        EXPECT_EQ(rank_of(place, shape), rank);
        EXPECT_TRUE(place.dp < shape.dp && place.tp < shape.tp && place.pp < shape.pp);
        places.insert({place.dp, place.tp, place.pp});
      }
      EXPECT_EQ(static_cast<int64_t>(places.size()), ranks);
    }
  }
  // tp is innermost and pp outermost.
  const MeshShape shape = mesh_shape(12, 2, 3);
  EXPECT_EQ(shape, (MeshShape{.dp = 2, .tp = 2, .pp = 3}));
  EXPECT_EQ(place_of(7, shape), (MeshPlace{.dp = 1, .tp = 1, .pp = 1}));
}

TEST(MeshShape, RefusesWhatDoesNotDivide) {
  for (const auto& [tp, pp] : {std::pair<int64_t, int64_t>{4, 1}, {1, 4}, {2, 2}, {7, 1}}) {
    try {
      mesh_shape(6, tp, pp);
      FAIL() << tp << " x " << pp;
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what())
                    .find(fmt::format("need a multiple of {} ranks, and there are 6", tp * pp)),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(Mesh, OfRanksThatDoNotExistHasTheRightSizes) {
  for (const MeshShape& shape : shapes_of(24)) {
    ImaginedRanks world(24);
    const Mesh mesh(world, shape);
    EXPECT_EQ(mesh.dp().size(), shape.dp);
    EXPECT_EQ(mesh.tp().size(), shape.tp);
    EXPECT_EQ(mesh.pp().size(), shape.pp);
  }
  ImaginedRanks world(3);
  EXPECT_EQ(&Mesh(world).dp(), &world);
}

class MeshTest : public ::testing::TestWithParam<CommKind> {};

// On real ranks: along each axis, coordinates count up and the others stay.
TEST_P(MeshTest, AxesConnectTheRightRanks) {
  Ranks ranks(GetParam());
  for (const MeshShape& shape : shapes_of(ranks.comm->size())) {
    SCOPED_TRACE(fmt::format("dp {}, tp {}, pp {}", shape.dp, shape.tp, shape.pp));
    const Mesh mesh(*ranks.comm, shape);
    const auto check = [&](Communicator& axis, int64_t MeshPlace::*coordinate, int64_t size) {
      ASSERT_EQ(axis.size(), size);
      const MeshPlace mine = mesh.place();
      EXPECT_EQ(axis.rank(), mine.*coordinate);
      std::vector<int64_t> all(static_cast<size_t>(size));
      const int64_t me = ranks.comm->rank();
      axis.exchange(all.data(), &me, sizeof(me));
      // And through the device: the sum of their ranks.
      const Array sum(*ranks.device, DType::int64, 1);
      ranks.device->upload(sum.tensor(), &me);
      axis.after_device();
      axis.all_reduce(sum.tensor(), sum.tensor(), Reduction::sum, "ranks along an axis");
      axis.device_after(axis.last());
      int64_t found = 0, expected = 0;
      for (int64_t i = 0; i < size; ++i) {
        MeshPlace other = mine;
        other.*coordinate = i;
        EXPECT_EQ(all[static_cast<size_t>(i)], rank_of(other, shape));
        expected += rank_of(other, shape);
      }
      ranks.device->download(&found, sum.tensor());
      EXPECT_EQ(found, expected);
    };
    check(mesh.dp(), &MeshPlace::dp, shape.dp);
    check(mesh.tp(), &MeshPlace::tp, shape.tp);
    check(mesh.pp(), &MeshPlace::pp, shape.pp);
    mesh.world().barrier();
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, MeshTest, ::testing::ValuesIn([] {
                           std::vector<CommKind> kinds;
                           for (const Variant& variant : variants_under_test()) {
                             if (kinds.empty() || kinds.back() != variant.kind)
                               kinds.push_back(variant.kind);
                           }
                           return kinds;
                         }()));

}  // namespace
}  // namespace lathe::testing
