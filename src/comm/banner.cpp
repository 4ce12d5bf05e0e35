#include "src/comm/banner.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace lathe {

namespace {

// A process's command line as one would type it.
std::string command_of(const std::string& process) {
  std::ifstream file("/proc/" + process + "/cmdline", std::ios::binary);
  std::ostringstream raw;
  raw << file.rdbuf();
  std::string line;
  std::istringstream arguments(raw.str());
  for (std::string argument; std::getline(arguments, argument, '\0');) {
    const bool plain =
        !argument.empty() && argument.find_first_of(" '\"$\\*?;&|<>()") == std::string::npos;
    line += (line.empty() ? "" : " ") + (plain ? argument : "'" + argument + "'");
  }
  return line;
}

// The launcher's command if the launcher is this process's parent, as on the first host; otherwise
// this program's command.
std::string launch_command() {
  const std::string parent = command_of(std::to_string(getppid()));
  const std::string program =
      std::filesystem::path(parent.substr(0, parent.find(' '))).filename().string();
  for (const char* launcher : {"mpirun", "mpiexec", "orterun", "prterun", "mpiexec.hydra", "srun",
                               "palsrun", "aprun", "torchrun"})
    if (program == launcher) return parent;
  return command_of("self");
}

// "2 x a, 1 x b and 3 more": each distinct thing with its count, in order of first appearance.
std::string counted(const std::vector<std::string>& things) {
  constexpr size_t kMost = 8;
  std::vector<std::pair<std::string, int>> found;
  for (const std::string& thing : things) {
    const auto known = std::find_if(found.begin(), found.end(),
                                    [&](const auto& entry) { return entry.first == thing; });
    if (known == found.end()) {
      found.emplace_back(thing, 1);
    } else {
      ++known->second;
    }
  }
  std::string text;
  for (size_t i = 0; i < std::min(kMost, found.size()); ++i)
    text += fmt::format("{}{} x {}", i == 0 ? "" : ", ", found[i].second, found[i].first);
  if (found.size() > kMost) text += fmt::format(" and {} more", found.size() - kMost);
  return text;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> ranks_banner(const World& world,
                                                              Communicator& comm,
                                                              std::string_view device_name) {
  const Place& place = world.place();
  if (comm.size() == 1) return {{"device", std::string(device_name)}};
  const std::vector<std::string> hosts = comm.exchange_text(place.host);
  const std::vector<std::string> devices = comm.exchange_text(device_name);
  const std::vector<std::string> commands =
      comm.exchange_text(comm.rank() == 0 ? launch_command() : "");
  std::vector<std::string> different = hosts;
  std::sort(different.begin(), different.end());
  different.erase(std::unique(different.begin(), different.end()), different.end());
  std::vector<std::pair<std::string, std::string>> rows = {
      {"ranks", fmt::format("{} on {} host{}, talking over {}", comm.size(), different.size(),
                            different.size() == 1 ? "" : "s",
                            comm.kind() == CommKind::nccl ? "NCCL" : "MPI")},
      {"hosts", counted(hosts)},
      {"devices", counted(devices)},
      {"launcher", place.launcher.empty() ? "none" : place.launcher}};
  rows.emplace_back("scheduler", place.scheduler.empty()
                                     ? "none"
                                     : fmt::format("{}, job {}", place.scheduler, place.job));
  if (!place.host_file.empty()) rows.emplace_back("host file", place.host_file);
  rows.emplace_back("command", commands[0]);
  return rows;
}

}  // namespace lathe
