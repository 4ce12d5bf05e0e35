// What a job of several ranks prints about itself before it starts.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/comm/communicator.h"
#include "src/comm/world.h"

namespace lathe {

// Rows for a banner (src/io/console.h): ranks, hosts, devices, transport, launcher, scheduler,
// launch command. Collective: each rank passes its device's name, and all get the same rows. A
// single rank gets only the row of its device.
std::vector<std::pair<std::string, std::string>> ranks_banner(const World& world,
                                                              Communicator& comm,
                                                              std::string_view device_name);

}  // namespace lathe
