// Reads shards through MPI-IO (--reader mpi-io), for file systems on which MPI handles many ranks
// that read one file better than the kernel does.
#pragma once

#include "src/comm/world.h"
#include "src/data/shard.h"

namespace lathe {

// Each rank opens and reads files on its own, at any time and from any thread. UserError if MPI did
// not start this process. All files must be closed before the world is destroyed.
OpenShardFile mpi_shard_files(const World& world);

}  // namespace lathe
