#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/device/error.h"
#include "src/comm/world.h"

namespace lathe {

namespace {

// Environment variables as text and as numbers.
class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}

  bool has(const char* name) const { return environment_(name) != nullptr; }
  std::string text(const char* name) const {
    const char* value = environment_(name);
    return value ? value : "";
  }
  // Empty if the variable is absent or empty; UserError if it is not a number.
  std::optional<int> number(const char* name) const {
    const std::string value = text(name);
    if (value.empty()) return std::nullopt;
    int result = 0;
    const char* const end = value.data() + value.size();
    const auto [rest, error] = std::from_chars(value.data(), end, result);
    if (error != std::errc() || rest != end || result < 0)
      throw UserError("the environment's {} is '{}', but must be a number of at least 0", name,
                      value);
    return result;
  }
  // The first variable that is set.
  std::optional<int> first_number(std::initializer_list<const char*> names) const {
    for (const char* name : names)
      if (const std::optional<int> value = number(name)) return value;
    return std::nullopt;
  }

 private:
  const Environment& environment_;
};

// The variables in which a launcher passes its ranks their place. The first launcher found counts.
struct Launcher {
  const char* name;
  const char* rank;  // this launcher started the process if this is set ...
  std::vector<const char*> sizes, local_ranks, local_sizes;
  bool needs_size = false;  // ... and, if true, one of `sizes`
};

const std::vector<Launcher>& launchers() {
  static const std::vector<Launcher> all = {
      {"Open MPI",
       "OMPI_COMM_WORLD_RANK",
       {"OMPI_COMM_WORLD_SIZE"},
       {"OMPI_COMM_WORLD_LOCAL_RANK"},
       {"OMPI_COMM_WORLD_LOCAL_SIZE"}},
      {"PALS",
       "PALS_RANKID",
       {"PALS_SIZE", "PMI_SIZE"},
       {"PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"},
       {"PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"}},
      // MPICH's Hydra, Intel MPI, MVAPICH.
      {"PMI",
       "PMI_RANK",
       {"PMI_SIZE"},
       {"PMI_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"},
       {"PMI_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"}},
      // srun. A batch script has SLURM_PROCID and SLURM_NTASKS too but is not a rank; only a step
      // has its own number of tasks.
      {"Slurm", "SLURM_PROCID", {"SLURM_STEP_NUM_TASKS"}, {"SLURM_LOCALID"}, {}, true},
      {"PMIx", "PMIX_RANK", {"PMIX_SIZE"}, {"PMIX_LOCAL_RANK"}, {"PMIX_LOCAL_SIZE"}},
      {"environment", "RANK", {"WORLD_SIZE"}, {"LOCAL_RANK"}, {"LOCAL_WORLD_SIZE"}, true},
  };
  return all;
}

template <typename Names>
std::optional<int> first_of(const Variables& variables, const Names& names) {
  for (const char* name : names)
    if (const std::optional<int> value = variables.number(name)) return value;
  return std::nullopt;
}

// Tasks of a Slurm step on this host, from a list such as "4(x2),3" for 4, 4 and 3. 0 if unknown.
int slurm_local_size(const Variables& variables) {
  int host = variables.number("SLURM_NODEID").value_or(0);
  const std::string text = variables.text("SLURM_STEP_TASKS_PER_NODE");
  const char* at = text.c_str();
  while (*at) {
    char* end = nullptr;
    const long tasks = std::strtol(at, &end, 10);
    if (end == at) return 0;
    long hosts = 1;
    if (std::strncmp(end, "(x", 2) == 0) {
      hosts = std::strtol(end + 2, &end, 10);
      if (*end == ')') ++end;
    }
    if (host < hosts) return static_cast<int>(tasks);
    host -= static_cast<int>(hosts);
    if (*end == ',') ++end;
    at = end;
  }
  return 0;
}

void check_place(const Place& place, const Launcher& launcher) {
  const char* size = launcher.sizes.empty() ? "the size" : launcher.sizes[0];
  if (place.size > 0 && place.rank >= place.size)
    throw UserError("the environment's {} is {} and {} is {}: ranks count from 0", launcher.rank,
                    place.rank, size, place.size);
  if (place.local_size > 0 && place.local_rank >= place.local_size)
    throw UserError(
        "the environment says that this is rank {} of {} on this host: ranks count from 0",
        place.local_rank, place.local_size);
  if (place.size > 0 && place.local_size > place.size)
    throw UserError("the environment says that {} of {} ranks are on this host", place.local_size,
                    place.size);
}

void find_ranks(const Variables& variables, Place& place) {
  for (const Launcher& launcher : launchers()) {
    const std::optional<int> rank = variables.number(launcher.rank);
    const std::optional<int> size = first_of(variables, launcher.sizes);
    if (!rank || (launcher.needs_size && !size)) continue;
    if (size && *size == 0)
      throw UserError("the environment's {} is 0, but must be the number of ranks",
                      launcher.sizes[0]);
    place.launcher = launcher.name;
    place.rank = *rank;
    place.size = size.value_or(0);
    place.local_rank = first_of(variables, launcher.local_ranks).value_or(0);
    const bool slurm = place.launcher == "Slurm";
    place.local_size =
        slurm ? slurm_local_size(variables) : first_of(variables, launcher.local_sizes).value_or(0);
    if (place.size == 1) place.local_size = 1;
    check_place(place, launcher);
    return;
  }
  // A size without a rank is a mistake that would make every rank train alone.
  if (variables.number("WORLD_SIZE").value_or(1) > 1)
    throw UserError("the environment's WORLD_SIZE is {}, but RANK is not set",
                    variables.text("WORLD_SIZE"));
}

void find_scheduler(const Variables& variables, Place& place) {
  if (variables.has("SLURM_JOB_ID")) {
    place.scheduler = "Slurm";
    place.job = variables.text("SLURM_JOB_ID");
  } else if (variables.has("PBS_JOBID")) {
    place.scheduler = "PBS";
    place.job = variables.text("PBS_JOBID");
  }
  for (const char* name : {"PBS_NODEFILE", "SLURM_HOSTFILE", "OMPI_MCA_orte_default_hostfile"})
    if (place.host_file.empty()) place.host_file = variables.text(name);
}

}  // namespace

Place find_place(const Environment& environment) {
  const Variables variables(environment);
  Place place;
  find_ranks(variables, place);
  find_scheduler(variables, place);
  return place;
}

}  // namespace lathe
