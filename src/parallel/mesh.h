// Arranges the ranks of a job in a mesh. So far it has one axis, data parallelism: ranks along it
// hold the same parameters and train on different sequences. Only this file knows the position of
// each rank.
#pragma once

#include <cstdint>

#include "src/comm/communicator.h"

namespace lathe {

// Ranks along each axis.
struct MeshShape {
  int64_t dp = 1;
};
// The mesh of a job of `ranks`: all of them are data-parallel.
inline MeshShape mesh_shape(int64_t ranks) {
  return {.dp = ranks};
}

class Mesh {
 public:
  // `world`: all ranks of the job. It outlives the mesh.
  explicit Mesh(Communicator& world) : world_(&world) {}

  // All ranks, for errors, votes and texts.
  Communicator& world() const { return *world_; }
  int ranks() const { return world_->size(); }
  // Whether this rank prints, and writes the files that a job writes once.
  bool leads() const { return world_->rank() == 0; }

  // The ranks along the data-parallel axis.
  Communicator& dp() const { return *world_; }

 private:
  Communicator* world_;
};

}  // namespace lathe
