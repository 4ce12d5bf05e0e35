// Starts ranks_driver.cpp as several ranks under mpirun, and returns how they end.
#pragma once

#include "tests/train/process.h"

namespace lathe::testing {

// The deed and its arguments (device, comm); 0 ranks: the program alone, without mpirun.
ProcessResult run_ranks_driver(int ranks, const std::vector<std::string>& arguments,
                               const std::vector<std::string>& environment = {});

// How often a word occurs in a text.
int times(const std::string& text, const std::string& word);

}  // namespace lathe::testing
