// The ranks of a job: who this process is among them, and how it got there.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace lathe {

// What the launcher says of this process.
struct Place {
  int rank = 0, size = 1;              // in the job
  int local_rank = 0, local_size = 1;  // on this host
  std::string host;                    // its name
  // Who started the ranks and told them so: "Open MPI", "PMIx", "PMI", "PALS", "Slurm",
  // "environment" (RANK, WORLD_SIZE, ...); "" where this process is alone.
  std::string launcher;
  std::string scheduler;  // "Slurm", "PBS" or ""
  std::string job;        // its number there, or ""
  std::string host_file;  // the list of hosts that the scheduler or launcher wrote, or ""
};

// Reads the place from environment variables: first match of Open MPI's, PALS's, PMIx's and PMI's,
// Slurm's, and RANK/LOCAL_RANK/WORLD_SIZE. UserError where they contradict each other.
using Environment = std::function<const char*(const char* name)>;
Place find_place(const Environment& environment);

// The job, from the first moment of a program to its last. Joins MPI where a launcher started this
// process with others and MPI is there; a process that is alone never touches MPI.
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

  // Ends all ranks at once, from any thread.
  [[noreturn]] void abort(int exit_code) const noexcept;

 private:
  Place place_;
  bool has_mpi_ = false;
};

// run_main (kernels/device/error.h) for a program of several ranks. An error on one rank ends them
// all; the message names the rank. What all ranks find wrong alike, rank 0 tells alone.
int run_ranks(std::string_view program, int argc, char** argv,
              const std::function<int(World& world)>& body);

}  // namespace lathe
