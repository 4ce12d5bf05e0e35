// The kinds of communicators, each made by its own file; what a build lacks is made by one whose
// name begins with no_, and throws a UserError.
#pragma once

#include <memory>
#include <string>

#include "src/comm/communicator.h"

namespace lathe {

std::unique_ptr<Communicator> make_self_communicator(Device& device);

// All ranks of MPI_COMM_WORLD, with memory of the host or of GPUs.
std::unique_ptr<Communicator> make_mpi_communicator(const World& world, Device& device,
                                                    const CommunicatorOptions& options);
std::unique_ptr<Communicator> make_cuda_mpi_communicator(const World& world, Device& device,
                                                         const CommunicatorOptions& options);

// Whether NCCL can be loaded, and why not. Then a communicator that goes through it.
bool nccl_is_here(std::string* why_not);
std::unique_ptr<Communicator> make_nccl_communicator(const World& world, Device& device,
                                                     const CommunicatorOptions& options);

}  // namespace lathe
