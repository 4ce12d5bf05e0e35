// The ranks of a job: which one this process is, and who started it.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace lathe {

// What the launcher reports about this process.
struct Place {
  // In the job. Size 0: there are others, and MPI knows how many (PMIx and PALS do not report it).
  int rank = 0, size = 1;
  // On this host. Size 0: unknown.
  int local_rank = 0, local_size = 1;
  std::string host;  // its name, which World fills in
  // Who started the ranks: "Open MPI", "PMIx", "PMI", "PALS", "Slurm", "environment" (RANK,
  // WORLD_SIZE, ...); "" if this process is alone.
  std::string launcher;
  std::string scheduler;  // "Slurm", "PBS" or ""
  std::string job;        // the scheduler's job number, or ""
  std::string host_file;  // the list of hosts that the scheduler or launcher wrote, or ""
};

// Reads the place from environment variables: the first match of Open MPI's, PALS's, PMI's,
// Slurm's, PMIx's, and RANK/LOCAL_RANK/WORLD_SIZE. UserError if they contradict each other.
using Environment = std::function<const char*(const char* name)>;
Place find_place(const Environment& environment);

// How World's ranks exchange host memory; done on return.
class HostExchange {
 public:
  virtual ~HostExchange() = default;
  // all[r] = rank r's mine, `bytes` each.
  virtual void exchange(void* all, const void* mine, size_t bytes, const char* what) = 0;
  virtual void set_timeout(double seconds) = 0;
};

// The job, which lives as long as the program. Joins MPI if a launcher started this process with
// others and MPI is available; a process that is alone never touches MPI. If MPI is already
// initialised, it is used and not finalised.
class World {
 public:
  World(int* argc, char*** argv);
  ~World();  // leaves MPI; all ranks must get here
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Place& place() const { return place_; }
  int rank() const { return place_.rank; }
  int size() const { return place_.size; }
  bool has_mpi() const { return has_mpi_; }

  // On host memory, between the ranks that MPI knows, done on return: all[r] = rank r's mine,
  // `bytes` each. Call it from one thread, in the same order on all ranks. If a rank does not
  // arrive within the timeout (300 s unless set), the job ends and the message names that rank.
  void exchange(void* all, const void* mine, size_t bytes, const char* what) const;
  void set_timeout(double seconds) const;

  // Hold it during each MPI call. Does nothing if MPI lets several threads call at once.
  std::unique_lock<std::mutex> mpi_lock() const;

  // Ends all ranks at once, from any thread.
  [[noreturn]] void abort(int exit_code) const noexcept;
  // Prints "PROGRAM: rank R: SENTENCE" on stderr, without the rank if there is only one. From any
  // thread.
  void say(std::string_view sentence) const noexcept;
  // Prints why, and ends all ranks. If several ranks find the same error, one reports it: each
  // waits a little longer than the ranks below it, and rank 0 does not wait.
  [[noreturn]] void fail(std::string_view sentence, int exit_code = 1) const noexcept;

 private:
  std::string program_;
  Place place_;
  bool has_mpi_ = false;  // MPI knows these ranks
  bool owns_mpi_ = false;
  bool one_at_a_time_ = false;
  mutable std::mutex mpi_mutex_;
  std::unique_ptr<HostExchange> host_;  // if MPI knows these ranks
};

// run_main (kernels/device/error.h) for a program of several ranks; main() calls it. An error on
// one rank ends all of them from where it was thrown; the stack is not unwound, because destructors
// might wait for other ranks. A body that returns a code other than 0 does the same. The exit code
// is the job's. The message names the rank; if all ranks find the same error, only rank 0 reports
// it. A rank that succeeds waits for the others.
int run_ranks(std::string_view program, int argc, char** argv,
              const std::function<int(World& world)>& body);

}  // namespace lathe
