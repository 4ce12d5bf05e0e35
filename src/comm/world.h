// The ranks of a job: who this process is among them, and how it got there.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace lathe {

// What the launcher says of this process.
struct Place {
  // In the job. A size of 0: there are others, and MPI knows how many (PMIx and PALS do not say).
  int rank = 0, size = 1;
  // On this host. A size of 0: not said.
  int local_rank = 0, local_size = 1;
  std::string host;  // its name; World asks the system
  // Who started the ranks and told them so: "Open MPI", "PMIx", "PMI", "PALS", "Slurm",
  // "environment" (RANK, WORLD_SIZE, ...); "" where this process is alone.
  std::string launcher;
  std::string scheduler;  // "Slurm", "PBS" or ""
  std::string job;        // its number there, or ""
  std::string host_file;  // the list of hosts that the scheduler or launcher wrote, or ""
};

// Reads the place from environment variables: first match of Open MPI's, PALS's, PMI's, Slurm's,
// PMIx's, and RANK/LOCAL_RANK/WORLD_SIZE. UserError where they contradict each other.
using Environment = std::function<const char*(const char* name)>;
Place find_place(const Environment& environment);

// What World needs of its ranks once they can talk: memory of the host, at once.
class HostExchange {
 public:
  virtual ~HostExchange() = default;
  // all[r] = rank r's mine, `bytes` each.
  virtual void exchange(void* all, const void* mine, size_t bytes, const char* what) = 0;
  virtual void set_timeout(double seconds) = 0;
};

// The job, from the first moment of a program to its last. Joins MPI where a launcher started this
// process with others and MPI is there; a process that is alone never touches MPI. Where MPI has
// been initialised before, that is taken over, and left as it is in the end.
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

  // Host memory between the ranks that MPI knows, at once: all[r] = rank r's mine, `bytes` each.
  // For one thread, in the same order on all ranks. Whoever does not come within the timeout (300 s
  // where it is not set) ends the job, and is named.
  void exchange(void* all, const void* mine, size_t bytes, const char* what) const;
  void set_timeout(double seconds) const;

  // To be held during each MPI call: does nothing where MPI lets several threads call at once.
  std::unique_lock<std::mutex> mpi_lock() const;

  // Ends all ranks at once, from any thread.
  [[noreturn]] void abort(int exit_code) const noexcept;
  // "PROGRAM: rank R: SENTENCE" on stderr, without the rank where there is one; from any thread.
  void say(std::string_view sentence) const noexcept;
  // Says why, and ends all ranks. What several ranks find out at the same time is told once: each
  // waits a little longer than those before it, rank 0 not at all.
  [[noreturn]] void fail(std::string_view sentence, int exit_code = 1) const noexcept;

 private:
  std::string program_;
  Place place_;
  bool has_mpi_ = false;  // MPI knows these ranks
  bool owns_mpi_ = false;
  bool one_at_a_time_ = false;
  mutable std::mutex mpi_mutex_;
  std::unique_ptr<HostExchange> host_;  // where MPI knows these ranks
};

// run_main (kernels/device/error.h) for a program of several ranks, called by main() itself. An
// error on one rank ends them all from where it was thrown: nothing is unwound, for destructors
// might wait for the others. So does a body that returns another code than 0. The exit code is the
// job's; the message names the rank, and what all ranks find wrong alike, rank 0 tells alone. A
// rank that ends well waits for the others.
int run_ranks(std::string_view program, int argc, char** argv,
              const std::function<int(World& world)>& body);

}  // namespace lathe
