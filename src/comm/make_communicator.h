// Factories of the communicators, one file each. If a build lacks one, a file whose name begins
// with no_ defines it and throws a UserError.
#pragma once

#include <memory>
#include <string>

#include "src/comm/communicator.h"

namespace lathe {

std::unique_ptr<Communicator> make_self_communicator(Device& device);

// All ranks of MPI_COMM_WORLD, with host memory or GPU memory.
std::unique_ptr<Communicator> make_mpi_communicator(const World& world, Device& device,
                                                    const CommunicatorOptions& options);
std::unique_ptr<Communicator> make_cuda_mpi_communicator(const World& world, Device& device,
                                                         const CommunicatorOptions& options);

// Whether NCCL can be loaded; if not, `why_not` is the reason. Then a communicator that uses it.
bool nccl_is_here(std::string* why_not);
std::unique_ptr<Communicator> make_nccl_communicator(const World& world, Device& device,
                                                     const CommunicatorOptions& options);

}  // namespace lathe
