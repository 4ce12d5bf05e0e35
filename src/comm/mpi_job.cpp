#include "src/comm/mpi_job.h"

#include <mpi.h>

#include <cstdlib>

#include "kernels/device/error.h"
#include "src/comm/mpi_collectives.h"

namespace lathe {

bool mpi_is_built() {
  return true;
}

bool mpi_is_initialized() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  return initialized != 0;
}

MpiJob join_mpi(int* argc, char*** argv) {
  MpiJob job;
  int threads = MPI_THREAD_SINGLE;
  job.owned = !mpi_is_initialized();
  if (job.owned) {
    MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &threads);
  } else {
    MPI_Query_thread(&threads);
  }
  if (threads < MPI_THREAD_SERIALIZED) {
    throw UserError(
        "this MPI lets only the main thread call it, but lathe communicates from another: use an "
        "MPI that was built with threads");
  }
  job.one_at_a_time = threads < MPI_THREAD_MULTIPLE;
  MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &job.size);
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, job.rank, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &job.local_rank);
  MPI_Comm_size(host, &job.local_size);
  MPI_Comm_free(&host);
  return job;
}

namespace {

class MpiHostExchange final : public HostExchange {
 public:
  explicit MpiHostExchange(const World& world)
      : collectives_(world, all_ranks(world), kTimeoutSeconds) {}
  void exchange(void* all, const void* mine, size_t bytes, const char* what) override {
    collectives_.run({CollectiveKind::all_gather,
                      DType::uint8,
                      {},
                      -1,
                      static_cast<int64_t>(bytes),
                      mine,
                      all,
                      what});
  }
  void set_timeout(double seconds) override { collectives_.set_timeout(seconds); }

 private:
  static constexpr double kTimeoutSeconds = 300;
  MpiCollectives collectives_;
};

}  // namespace

std::unique_ptr<HostExchange> make_host_exchange(const World& world) {
  return std::make_unique<MpiHostExchange>(world);
}

void leave_mpi() noexcept {
  MPI_Finalize();
}

void abort_mpi(int exit_code) noexcept {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace lathe
