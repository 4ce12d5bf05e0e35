// Where a test finds the programs and files that were built or written with it.
#pragma once

#include <cstdlib>
#include <string>

namespace lathe::testing {

// `built`, a path that the build wrote into the test; or what the environment's `variable` names,
// if the tests were carried to another machine (tools/carry_binaries.sh).
inline std::string located(const char* variable, const char* built) {
  const char* carried = std::getenv(variable);
  return carried != nullptr ? carried : built;
}

}  // namespace lathe::testing
