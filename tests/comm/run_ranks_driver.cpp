#include "tests/comm/run_ranks_driver.h"

namespace lathe::testing {

ProcessResult run_ranks_driver(int ranks, const std::vector<std::string>& arguments,
                               const std::vector<std::string>& environment) {
  std::vector<std::string> command;
  if (ranks > 0) command = {LATHE_MPIEXEC, LATHE_MPIEXEC_NUMPROC, std::to_string(ranks)};
  command.emplace_back(LATHE_RANKS_DRIVER);
  command.insert(command.end(), arguments.begin(), arguments.end());
  ProcessOptions options;
  options.environment = environment;
  for (const char* variable :
       {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "OMPI_MCA_rmaps_base_oversubscribe=1", "OMPI_MCA_hwloc_base_binding_policy=none",
        "ASAN_OPTIONS=detect_leaks=0"})  // MPI keeps memory to the end, which is not our leak
    options.environment.emplace_back(variable);
  options.deadline = std::chrono::seconds(60);
  return run(command, options);
}

int times(const std::string& text, const std::string& word) {
  int found = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
  return found;
}

}  // namespace lathe::testing
