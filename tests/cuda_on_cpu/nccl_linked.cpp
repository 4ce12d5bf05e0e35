// Takes the place of src/parallel/nccl_library.cpp: the functions of the stand-in.
#include "src/parallel/nccl_library.h"

namespace lathe {

Nccl load_nccl() {
  return {
      ncclGetVersion,        ncclGetUniqueId,    ncclCommInitRank, ncclCommDestroy, ncclCommAbort,
      ncclCommGetAsyncError, ncclGetErrorString, ncclGetLastError, ncclAllReduce,   ncclReduce,
      ncclReduceScatter,     ncclAllGather,      ncclBroadcast,    ncclSend,        ncclRecv,
      ncclGroupStart,        ncclGroupEnd};
}

}  // namespace lathe
