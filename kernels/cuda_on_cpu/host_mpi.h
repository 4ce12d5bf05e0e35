// The program's own MPI calls, next to the stand-in for NCCL.
//
// While the program waits in MPI for other ranks, their streams may wait for a collective of this
// rank's streams, which run only while somebody waits for them. So every MPI call that can wait is
// wrapped here (the MPI_ names, over PMPI_) and does the device's work meanwhile:
// - point-to-point calls become their non-blocking form and a loop of MPI_Test;
// - collective calls first wait in such a loop for all ranks (MPI_Ibarrier). After it all ranks are
//   in the call, none waits for a stream, and MPI's own function runs: the same bits as without
//   this wrapper. Such a call always waits for all ranks, which MPI allows for every collective.
// Only the main thread does the device's work; other threads' calls go straight to MPI.
#pragma once

#include <mpi.h>

#include <functional>

namespace lathe::cuda_on_cpu {

// Does the device's work until reached(). Ends the program, on all ranks, if nothing moves for
// longer than LATHE_CUDA_PATIENCE allows; `what` names the wait.
void wait_until(const char* what, const std::function<bool()>& reached);

// Returns when all ranks of `comm` have called it.
void meet(const char* what, MPI_Comm comm);

// A duplicate of MPI_COMM_WORLD for the stand-ins, made by MPI_Init; MPI_COMM_NULL before that and
// after MPI_Finalize.
MPI_Comm world_of_stand_ins();

}  // namespace lathe::cuda_on_cpu
