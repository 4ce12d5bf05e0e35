// A small network, trained data-parallel: each rank its own examples, gradients summed while the
// backward pass goes on.
#pragma once

#include <string>
#include <vector>

#include "src/comm/communicator.h"

namespace lathe {

struct NetworkRun {
  std::vector<double> losses;          // mean over all ranks' examples, by step
  std::vector<std::string> checksums;  // of the weights in the end, by rank
};

// Together on all ranks. The examples of a step are the same 64 at any number of ranks that divides
// them.
NetworkRun train_small_network(Device& device, Communicator& comm, int steps);

}  // namespace lathe
