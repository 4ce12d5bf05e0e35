// What World needs from MPI: mpi_job.cpp, or no_mpi.cpp in a build without it.
#pragma once

#include <memory>
#include <string>

#include "src/comm/world.h"

namespace lathe {

struct MpiJob {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;
  bool owned = false;          // initialised by lathe
  bool one_at_a_time = false;  // only one thread may call MPI at a time
};

// Whether this build has MPI.
bool mpi_is_built();
// Whether MPI has been initialised in this process, by anyone.
bool mpi_is_initialized();
// Initialises MPI if nobody has. UserError if it lets only the main thread call.
MpiJob join_mpi(int* argc, char*** argv);
void leave_mpi() noexcept;
// Waits for all ranks.
std::unique_ptr<HostExchange> make_host_exchange(const World& world);
[[noreturn]] void abort_mpi(int exit_code) noexcept;

}  // namespace lathe
