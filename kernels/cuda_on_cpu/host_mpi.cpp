#include "kernels/cuda_on_cpu/host_mpi.h"

#include <fmt/format.h>

#include "kernels/cuda_on_cpu/backoff.h"
#include "kernels/cuda_on_cpu/runtime.h"

namespace lathe::cuda_on_cpu {

namespace {

MPI_Comm& stand_in_world() {
  static MPI_Comm comm = MPI_COMM_NULL;
  return comm;
}

bool on_main_thread() {
  int initialized = 0, main_thread = 0;
  PMPI_Initialized(&initialized);
  if (!initialized) return true;
  PMPI_Is_thread_main(&main_thread);
  return main_thread;
}

// Waits for one request; returns the call's own result if it could not be started.
int finish(const char* what, int begun, MPI_Request* request, MPI_Status* status) {
  if (begun != MPI_SUCCESS) return begun;
  int result = MPI_SUCCESS;
  wait_until(what, [&] {
    int done = 0;
    result = PMPI_Test(request, &done, status);
    return done || result != MPI_SUCCESS;
  });
  return result;
}

// Runs a collective call once all ranks have entered it.
template <typename Call>
int together(const char* what, MPI_Comm comm, const Call& call) {
  if (on_main_thread()) meet(what, comm);
  return call();
}

// A duplicate of MPI_COMM_WORLD that returns errors as results.
void make_world() {
  PMPI_Comm_dup(MPI_COMM_WORLD, &stand_in_world());
  PMPI_Comm_set_errhandler(stand_in_world(), MPI_ERRORS_RETURN);
}

}  // namespace

MPI_Comm world_of_stand_ins() {
  return stand_in_world();
}

void wait_until(const char* what, const std::function<bool()>& reached) {
  const bool works = on_main_thread();
  Backoff backoff;
  while (!reached()) {
    if (works && make_progress()) {
      backoff.moved();
    } else if (!backoff.idle()) {
      int rank = 0;
      PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
      fmt::print(stderr, "rank {} waits forever in {}\n", rank, what);
      PMPI_Abort(MPI_COMM_WORLD, 1);
    }
  }
}

void meet(const char* what, MPI_Comm comm) {
  MPI_Request request = MPI_REQUEST_NULL;
  finish(what, PMPI_Ibarrier(comm, &request), &request, MPI_STATUS_IGNORE);
}

}  // namespace lathe::cuda_on_cpu

using lathe::cuda_on_cpu::finish;
using lathe::cuda_on_cpu::together;
using lathe::cuda_on_cpu::wait_until;

extern "C" {

// ---- Beginning and end.

int MPI_Init(int* argc, char*** argv) {
  const int result = PMPI_Init(argc, argv);
  lathe::cuda_on_cpu::make_world();
  return result;
}
int MPI_Init_thread(int* argc, char*** argv, int required, int* provided) {
  const int result = PMPI_Init_thread(argc, argv, required, provided);
  lathe::cuda_on_cpu::make_world();
  return result;
}
int MPI_Finalize() {
  // Others may need this rank's streams to finish.
  lathe::cuda_on_cpu::meet("MPI_Finalize", MPI_COMM_WORLD);
  PMPI_Comm_free(&lathe::cuda_on_cpu::stand_in_world());
  return PMPI_Finalize();
}

// ---- Point to point.

int MPI_Send(const void* buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  MPI_Request request = MPI_REQUEST_NULL;
  return finish("MPI_Send", PMPI_Isend(buffer, count, type, to, tag, comm, &request), &request,
                MPI_STATUS_IGNORE);
}
int MPI_Ssend(const void* buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  MPI_Request request = MPI_REQUEST_NULL;
  return finish("MPI_Ssend", PMPI_Issend(buffer, count, type, to, tag, comm, &request), &request,
                MPI_STATUS_IGNORE);
}
int MPI_Recv(void* buffer, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm,
             MPI_Status* status) {
  MPI_Request request = MPI_REQUEST_NULL;
  return finish("MPI_Recv", PMPI_Irecv(buffer, count, type, from, tag, comm, &request), &request,
                status);
}
int MPI_Sendrecv(const void* send, int send_count, MPI_Datatype send_type, int to, int send_tag,
                 void* recv, int recv_count, MPI_Datatype recv_type, int from, int recv_tag,
                 MPI_Comm comm, MPI_Status* status) {
  MPI_Request received = MPI_REQUEST_NULL, sent = MPI_REQUEST_NULL;
  const int result = PMPI_Irecv(recv, recv_count, recv_type, from, recv_tag, comm, &received);
  if (result != MPI_SUCCESS) return result;
  const int begun = PMPI_Isend(send, send_count, send_type, to, send_tag, comm, &sent);
  const int ended = finish("MPI_Sendrecv", begun, &sent, MPI_STATUS_IGNORE);
  return finish("MPI_Sendrecv", ended, &received, status);
}
int MPI_Probe(int from, int tag, MPI_Comm comm, MPI_Status* status) {
  int result = MPI_SUCCESS;
  wait_until("MPI_Probe", [&] {
    int found = 0;
    result = PMPI_Iprobe(from, tag, comm, &found, status);
    return found || result != MPI_SUCCESS;
  });
  return result;
}

// ---- Requests. A caller that polls in a loop of its own must see the device make progress.

int MPI_Wait(MPI_Request* request, MPI_Status* status) {
  return finish("MPI_Wait", MPI_SUCCESS, request, status);
}
int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  int result = MPI_SUCCESS;
  wait_until("MPI_Waitall", [&] {
    int done = 0;
    result = PMPI_Testall(count, requests, &done, statuses);
    return done || result != MPI_SUCCESS;
  });
  return result;
}
int MPI_Waitany(int count, MPI_Request* requests, int* index, MPI_Status* status) {
  int result = MPI_SUCCESS;
  wait_until("MPI_Waitany", [&] {
    int done = 0;
    result = PMPI_Testany(count, requests, index, &done, status);
    return done || result != MPI_SUCCESS;
  });
  return result;
}
int MPI_Waitsome(int count, MPI_Request* requests, int* done, int* indices, MPI_Status* statuses) {
  int result = MPI_SUCCESS;
  wait_until("MPI_Waitsome", [&] {
    result = PMPI_Testsome(count, requests, done, indices, statuses);
    return *done != 0 || result != MPI_SUCCESS;
  });
  return result;
}
int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  if (lathe::cuda_on_cpu::on_main_thread()) lathe::cuda_on_cpu::make_progress();
  return PMPI_Test(request, done, status);
}
int MPI_Testall(int count, MPI_Request* requests, int* done, MPI_Status* statuses) {
  if (lathe::cuda_on_cpu::on_main_thread()) lathe::cuda_on_cpu::make_progress();
  return PMPI_Testall(count, requests, done, statuses);
}
int MPI_Testsome(int count, MPI_Request* requests, int* done, int* indices, MPI_Status* statuses) {
  if (lathe::cuda_on_cpu::on_main_thread()) lathe::cuda_on_cpu::make_progress();
  return PMPI_Testsome(count, requests, done, indices, statuses);
}
int MPI_Iprobe(int from, int tag, MPI_Comm comm, int* found, MPI_Status* status) {
  if (lathe::cuda_on_cpu::on_main_thread()) lathe::cuda_on_cpu::make_progress();
  return PMPI_Iprobe(from, tag, comm, found, status);
}

// ---- Collective calls.

int MPI_Barrier(MPI_Comm comm) {
  return together("MPI_Barrier", comm, [&] { return PMPI_Barrier(comm); });
}
int MPI_Bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  return together("MPI_Bcast", comm, [&] { return PMPI_Bcast(buffer, count, type, root, comm); });
}
int MPI_Allreduce(const void* send, void* recv, int count, MPI_Datatype type, MPI_Op op,
                  MPI_Comm comm) {
  return together("MPI_Allreduce", comm,
                  [&] { return PMPI_Allreduce(send, recv, count, type, op, comm); });
}
int MPI_Reduce(const void* send, void* recv, int count, MPI_Datatype type, MPI_Op op, int root,
               MPI_Comm comm) {
  return together("MPI_Reduce", comm,
                  [&] { return PMPI_Reduce(send, recv, count, type, op, root, comm); });
}
int MPI_Reduce_scatter(const void* send, void* recv, const int* counts, MPI_Datatype type,
                       MPI_Op op, MPI_Comm comm) {
  return together("MPI_Reduce_scatter", comm,
                  [&] { return PMPI_Reduce_scatter(send, recv, counts, type, op, comm); });
}
int MPI_Reduce_scatter_block(const void* send, void* recv, int count, MPI_Datatype type, MPI_Op op,
                             MPI_Comm comm) {
  return together("MPI_Reduce_scatter_block", comm,
                  [&] { return PMPI_Reduce_scatter_block(send, recv, count, type, op, comm); });
}
int MPI_Exscan(const void* send, void* recv, int count, MPI_Datatype type, MPI_Op op,
               MPI_Comm comm) {
  return together("MPI_Exscan", comm,
                  [&] { return PMPI_Exscan(send, recv, count, type, op, comm); });
}
int MPI_Allgather(const void* send, int send_count, MPI_Datatype send_type, void* recv,
                  int recv_count, MPI_Datatype recv_type, MPI_Comm comm) {
  return together("MPI_Allgather", comm, [&] {
    return PMPI_Allgather(send, send_count, send_type, recv, recv_count, recv_type, comm);
  });
}
int MPI_Allgatherv(const void* send, int send_count, MPI_Datatype send_type, void* recv,
                   const int* counts, const int* offsets, MPI_Datatype recv_type, MPI_Comm comm) {
  return together("MPI_Allgatherv", comm, [&] {
    return PMPI_Allgatherv(send, send_count, send_type, recv, counts, offsets, recv_type, comm);
  });
}
int MPI_Gather(const void* send, int send_count, MPI_Datatype send_type, void* recv, int recv_count,
               MPI_Datatype recv_type, int root, MPI_Comm comm) {
  return together("MPI_Gather", comm, [&] {
    return PMPI_Gather(send, send_count, send_type, recv, recv_count, recv_type, root, comm);
  });
}
int MPI_Gatherv(const void* send, int send_count, MPI_Datatype send_type, void* recv,
                const int* counts, const int* offsets, MPI_Datatype recv_type, int root,
                MPI_Comm comm) {
  return together("MPI_Gatherv", comm, [&] {
    return PMPI_Gatherv(send, send_count, send_type, recv, counts, offsets, recv_type, root, comm);
  });
}
int MPI_Scatter(const void* send, int send_count, MPI_Datatype send_type, void* recv,
                int recv_count, MPI_Datatype recv_type, int root, MPI_Comm comm) {
  return together("MPI_Scatter", comm, [&] {
    return PMPI_Scatter(send, send_count, send_type, recv, recv_count, recv_type, root, comm);
  });
}
int MPI_Scatterv(const void* send, const int* counts, const int* offsets, MPI_Datatype send_type,
                 void* recv, int recv_count, MPI_Datatype recv_type, int root, MPI_Comm comm) {
  return together("MPI_Scatterv", comm, [&] {
    return PMPI_Scatterv(send, counts, offsets, send_type, recv, recv_count, recv_type, root, comm);
  });
}
int MPI_Alltoall(const void* send, int send_count, MPI_Datatype send_type, void* recv,
                 int recv_count, MPI_Datatype recv_type, MPI_Comm comm) {
  return together("MPI_Alltoall", comm, [&] {
    return PMPI_Alltoall(send, send_count, send_type, recv, recv_count, recv_type, comm);
  });
}
int MPI_Alltoallv(const void* send, const int* send_counts, const int* send_offsets,
                  MPI_Datatype send_type, void* recv, const int* recv_counts,
                  const int* recv_offsets, MPI_Datatype recv_type, MPI_Comm comm) {
  return together("MPI_Alltoallv", comm, [&] {
    return PMPI_Alltoallv(send, send_counts, send_offsets, send_type, recv, recv_counts,
                          recv_offsets, recv_type, comm);
  });
}

// ---- Communicators.

int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* copy) {
  return together("MPI_Comm_dup", comm, [&] { return PMPI_Comm_dup(comm, copy); });
}
int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* part) {
  return together("MPI_Comm_split", comm, [&] { return PMPI_Comm_split(comm, color, key, part); });
}
int MPI_Comm_split_type(MPI_Comm comm, int kind, int key, MPI_Info info, MPI_Comm* part) {
  return together("MPI_Comm_split_type", comm,
                  [&] { return PMPI_Comm_split_type(comm, kind, key, info, part); });
}
int MPI_Comm_create(MPI_Comm comm, MPI_Group group, MPI_Comm* part) {
  return together("MPI_Comm_create", comm, [&] { return PMPI_Comm_create(comm, group, part); });
}

}  // extern "C"
