// Shards read through MPI-IO (--reader mpi-io): for file systems whose MPI knows better than the
// kernel how many ranks read one file at a time.
#pragma once

#include "src/comm/world.h"
#include "src/data/shard.h"

namespace lathe {

// Each rank opens and reads for itself, at any time and from any thread. UserError where MPI does
// not know this process. All files must be closed before the world ends.
OpenShardFile mpi_shard_files(const World& world);

}  // namespace lathe
