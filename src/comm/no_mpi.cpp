// Replaces mpi_job.cpp and mpi_communicator.cpp in a build without MPI.
#include <cstdlib>

#include "src/comm/make_communicator.h"
#include "src/comm/mpi_job.h"

namespace lathe {

bool mpi_is_built() {
  return false;
}

bool mpi_is_initialized() {
  return false;
}

MpiJob join_mpi(int*, char***) {
  throw UserError("this build has no MPI: build where MPI is found");
}

std::unique_ptr<HostExchange> make_host_exchange(const World&) {
  return nullptr;
}

void leave_mpi() noexcept {}

void abort_mpi(int exit_code) noexcept {
  std::_Exit(exit_code);
}

std::unique_ptr<Communicator> make_mpi_communicator(const World&, Device&,
                                                    const CommunicatorOptions&) {
  throw UserError("--comm mpi: this build has no MPI; build where MPI is found");
}

}  // namespace lathe
