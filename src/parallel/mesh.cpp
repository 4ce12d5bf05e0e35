#include "src/parallel/mesh.h"

namespace lathe {

MeshShape mesh_shape(int64_t ranks, int64_t tp, int64_t pp) {
  if (tp < 1 || pp < 1 || ranks % (tp * pp) != 0) {
    throw UserError(
        "--tp {} and --pp {} need a multiple of {} ranks, and there are {}: start another number, "
        "or "
        "change the flags",
        tp, pp, tp * pp, ranks);
  }
  return {.dp = ranks / (tp * pp), .tp = tp, .pp = pp};
}

MeshPlace place_of(int64_t rank, const MeshShape& shape) {
  return {
      .dp = rank / shape.tp % shape.dp, .tp = rank % shape.tp, .pp = rank / shape.tp / shape.dp};
}

int64_t rank_of(const MeshPlace& place, const MeshShape& shape) {
  return (place.pp * shape.dp + place.dp) * shape.tp + place.tp;
}

// The ranks along an axis give the same color: the first of them.
Mesh::Mesh(Communicator& world, const MeshShape& shape) : world_(&world), shape_(shape) {
  LATHE_CHECK(shape.ranks() == world.size(), "a mesh of {} ranks for {}", shape.ranks(),
              world.size());
  const auto along = [&](int64_t MeshPlace::*axis, int64_t size, const char* name) {
    if (size == shape.ranks()) return std::shared_ptr<Communicator>(world_, [](Communicator*) {});
    MeshPlace first = place();
    first.*axis = 0;
    return std::shared_ptr<Communicator>(
        world.split(static_cast<int>(rank_of(first, shape)), 0, static_cast<int>(size), name));
  };
  dp_ = along(&MeshPlace::dp, shape.dp, "dp");
  tp_ = along(&MeshPlace::tp, shape.tp, "tp");
  pp_ = along(&MeshPlace::pp, shape.pp, "pp");
}

}  // namespace lathe
