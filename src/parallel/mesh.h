// Arranges the ranks of a job in a mesh with an axis for each kind of parallelism. Ranks along an
// axis differ in nothing else:
//
//   dp   data parallelism: the same parameters, other sequences
//   tp   tensor parallelism: the same layers and sequences, another part of each matrix
//   pp   pipeline parallelism: the same sequences, other layers
//
// tp is innermost, because it communicates most, so its ranks are neighbours on a host; pp is
// outermost: rank = (pp * size of dp + dp) * size of tp + tp. Only this file knows the position of
// each rank. The trainer uses dp alone so far.
#pragma once

#include <cstdint>
#include <memory>

#include "src/comm/communicator.h"

namespace lathe {

// Ranks along each axis.
struct MeshShape {
  int64_t dp = 1, tp = 1, pp = 1;
  int64_t ranks() const { return dp * tp * pp; }
  bool operator==(const MeshShape&) const = default;
};

// Coordinates of a rank.
struct MeshPlace {
  int64_t dp = 0, tp = 0, pp = 0;
  bool operator==(const MeshPlace&) const = default;
};

// The mesh of a job of `ranks`; dp is what tp and pp leave. UserError if that is no whole number.
MeshShape mesh_shape(int64_t ranks, int64_t tp = 1, int64_t pp = 1);
MeshPlace place_of(int64_t rank, const MeshShape& shape);
int64_t rank_of(const MeshPlace& place, const MeshShape& shape);

class Mesh {
 public:
  // `world`: all ranks of the job, which call this together. It outlives the mesh and its copies.
  Mesh(Communicator& world, const MeshShape& shape);
  // All ranks are data-parallel.
  explicit Mesh(Communicator& world) : Mesh(world, mesh_shape(world.size())) {}

  const MeshShape& shape() const { return shape_; }
  MeshPlace place() const { return place_of(world_->rank(), shape_); }

  // All ranks, for errors, votes and texts.
  Communicator& world() const { return *world_; }
  int ranks() const { return world_->size(); }
  // Whether this rank prints, and writes the files that a job writes once.
  bool leads() const { return world_->rank() == 0; }

  // The ranks along an axis through this one. If all ranks are on one axis, that is the world.
  Communicator& dp() const { return *dp_; }
  Communicator& tp() const { return *tp_; }
  Communicator& pp() const { return *pp_; }

 private:
  Communicator* world_;
  MeshShape shape_;
  std::shared_ptr<Communicator> dp_, tp_, pp_;  // may be the world, which they do not own
};

}  // namespace lathe
