// What a job of several ranks says of itself before it begins.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/comm/communicator.h"
#include "src/comm/world.h"

namespace lathe {

// Rows for a banner (src/io/console.h): ranks, hosts, devices, how they talk, launcher, scheduler,
// launch command. All ranks call it together, each with its device's name; all get the same rows.
// One rank that nobody launched has its device alone.
std::vector<std::pair<std::string, std::string>> ranks_banner(const World& world,
                                                              Communicator& comm,
                                                              std::string_view device_name);

}  // namespace lathe
