// Takes the place of nccl_library.cpp where NCCL is linked: in builds for CUDA on the CPU.
#include "src/comm/nccl_library.h"

namespace lathe {

Nccl load_nccl() {
  return {
      ncclGetVersion, ncclGetUniqueId,       ncclCommInitRank,   ncclCommSplit,    ncclCommDestroy,
      ncclCommAbort,  ncclCommGetAsyncError, ncclGetErrorString, ncclGetLastError, ncclAllReduce,
      ncclReduce,     ncclReduceScatter,     ncclAllGather,      ncclBroadcast,    ncclSend,
      ncclRecv,       ncclGroupStart,        ncclGroupEnd};
}

}  // namespace lathe
