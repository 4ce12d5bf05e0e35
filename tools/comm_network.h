// A small network trained data-parallel: each rank has its own examples, and gradients are summed
// while the backward pass continues.
#pragma once

#include <string>
#include <vector>

#include "src/comm/communicator.h"

namespace lathe {

struct NetworkRun {
  std::vector<double> losses;          // mean over all ranks' examples, by step
  std::vector<std::string> checksums;  // of the final weights, by rank
};

// Collective. A step's 64 examples are the same for any number of ranks that divides 64.
NetworkRun train_small_network(Device& device, Communicator& comm, int steps);

}  // namespace lathe
