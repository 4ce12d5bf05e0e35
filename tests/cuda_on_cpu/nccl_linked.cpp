// Takes the place of src/comm/nccl_library.cpp: the functions of the stand-in.
#include <chrono>
#include <cstdlib>
#include <thread>

#include "src/comm/nccl_library.h"

namespace lathe {

namespace {

// LATHE_NCCL_INIT_HANGS=R: rank R never comes to the others, as on a network that is set up
// wrongly.
ncclResult_t comm_init_rank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  const char* const hangs = std::getenv("LATHE_NCCL_INIT_HANGS");
  while (hangs && rank == std::atoi(hangs)) std::this_thread::sleep_for(std::chrono::seconds(1));
  return ncclCommInitRank(comm, ranks, id, rank);
}

}  // namespace

Nccl load_nccl() {
  return {
      ncclGetVersion,        ncclGetUniqueId,    comm_init_rank,   ncclCommDestroy, ncclCommAbort,
      ncclCommGetAsyncError, ncclGetErrorString, ncclGetLastError, ncclAllReduce,   ncclReduce,
      ncclReduceScatter,     ncclAllGather,      ncclBroadcast,    ncclSend,        ncclRecv,
      ncclGroupStart,        ncclGroupEnd};
}

}  // namespace lathe
