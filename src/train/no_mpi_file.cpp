// Replaces mpi_file.cpp in a build without MPI.
#include "kernels/device/error.h"
#include "src/train/mpi_file.h"

namespace lathe {

OpenShardFile mpi_shard_files(const World&) {
  throw UserError("--reader mpi-io: this build has no MPI; use --reader mmap");
}

}  // namespace lathe
