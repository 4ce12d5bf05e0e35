// The program's own MPI calls beside the stand-in for NCCL.
//
// Where the program waits in MPI for other ranks, their streams may be waiting for a collective of
// this rank's streams, which run only while somebody waits for them. So every MPI call that can
// wait is wrapped here (the MPI_ names, over PMPI_) and does the device's work meanwhile:
// - point-to-point calls become their non-blocking form and a loop of MPI_Test;
// - collective calls first meet in such a loop (MPI_Ibarrier). When that is over all ranks are in
//   the call, nobody waits for a stream, and MPI's own function runs: the same bits as without us.
//   Such a call then always waits for all ranks, which MPI allows every collective to do.
// Only the main thread does the device's work; other threads' calls go straight to MPI.
#pragma once

#include <mpi.h>

#include <functional>

namespace lathe::cuda_on_cpu {

// Does the device's work until reached(). Ends the program, all ranks of it, where nothing moves
// for longer than LATHE_CUDA_PATIENCE allows; `what` names the wait.
void wait_until(const char* what, const std::function<bool()>& reached);

// Returns when all ranks of `comm` are here.
void meet(const char* what, MPI_Comm comm);

// A duplicate of MPI_COMM_WORLD for the stand-ins, made by MPI_Init; MPI_COMM_NULL before that and
// after MPI_Finalize.
MPI_Comm world_of_stand_ins();

}  // namespace lathe::cuda_on_cpu
