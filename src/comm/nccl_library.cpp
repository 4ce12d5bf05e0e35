#include "src/comm/nccl_library.h"

#include "kernels/cuda/shared_library.h"

namespace lathe {

Nccl load_nccl() {
  const cuda::SharedLibrary library(
      {.name = fmt::format("libnccl.so.{}", NCCL_MAJOR),
       .variable = "LATHE_NCCL",
       .title = fmt::format("NCCL {}", NCCL_MAJOR),
       .user = "--comm nccl",
       .purpose = "GPUs communicate through it",
       .advice = "install it (pip install nvidia-nccl-cu13 does, too), use --comm mpi"});
  Nccl nccl;
  library.find("ncclGetVersion", nccl.get_version);
  library.find("ncclGetUniqueId", nccl.get_unique_id);
  library.find("ncclCommInitRank", nccl.comm_init_rank);
  library.find_if_there("ncclCommSplit", nccl.comm_split);
  library.find("ncclCommDestroy", nccl.comm_destroy);
  library.find("ncclCommAbort", nccl.comm_abort);
  library.find("ncclCommGetAsyncError", nccl.comm_get_async_error);
  library.find("ncclGetErrorString", nccl.get_error_string);
  library.find("ncclGetLastError", nccl.get_last_error);
  library.find("ncclAllReduce", nccl.all_reduce);
  library.find("ncclReduce", nccl.reduce);
  library.find("ncclReduceScatter", nccl.reduce_scatter);
  library.find("ncclAllGather", nccl.all_gather);
  library.find("ncclBroadcast", nccl.broadcast);
  library.find("ncclSend", nccl.send);
  library.find("ncclRecv", nccl.receive);
  library.find("ncclGroupStart", nccl.group_start);
  library.find("ncclGroupEnd", nccl.group_end);
  return nccl;
}

}  // namespace lathe
