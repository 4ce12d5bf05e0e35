// How the ranks of a job stand to each other: a mesh with one axis so far, data parallelism. Ranks
// along it hold the same parameters and train on different sequences. Only this file knows where
// each rank of the job stands.
#pragma once

#include <cstdint>

#include "src/comm/communicator.h"

namespace lathe {

// Ranks along each axis.
struct MeshShape {
  int64_t dp = 1;
};
// That of a job of `ranks`: all of them are data-parallel.
inline MeshShape mesh_shape(int64_t ranks) {
  return {.dp = ranks};
}

class Mesh {
 public:
  // `world`: all ranks of the job. It outlives the mesh.
  explicit Mesh(Communicator& world) : world_(&world) {}

  // All ranks: for errors, votes and texts.
  Communicator& world() const { return *world_; }
  int ranks() const { return world_->size(); }
  // The one rank that prints, and that writes what a job writes once.
  bool leads() const { return world_->rank() == 0; }

  // The ranks along the data-parallel axis.
  Communicator& dp() const { return *world_; }

 private:
  Communicator* world_;
};

}  // namespace lathe
