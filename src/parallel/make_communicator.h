// The kinds of communicators, each made by its own file.
#pragma once

#include <memory>

#include "src/parallel/communicator.h"

namespace lathe {

std::unique_ptr<Communicator> make_self_communicator(Device& device);

// All ranks of MPI_COMM_WORLD; the device's memory must be the host's.
std::unique_ptr<Communicator> make_mpi_communicator(const World& world, Device& device,
                                                    const CommunicatorOptions& options);

}  // namespace lathe
