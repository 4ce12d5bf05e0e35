// Replaces cuda_mpi_communicator.cpp in a build without CUDA or MPI.
#include "src/comm/make_communicator.h"

namespace lathe {

std::unique_ptr<Communicator> make_cuda_mpi_communicator(const World&, Device&,
                                                         const CommunicatorOptions&) {
  throw UserError("--comm mpi: this build has no MPI; build where MPI is found");
}

}  // namespace lathe
