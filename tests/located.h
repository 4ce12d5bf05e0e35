// Locates the programs and files that were built with a test.
#pragma once

#include <cstdlib>
#include <string>

namespace lathe::testing {

// Returns the environment's `variable` if it is set, because the tests were copied to another
// machine (tools/carry_binaries.sh); else `built`, the path that the build compiled into the test.
inline std::string located(const char* variable, const char* built) {
  const char* carried = std::getenv(variable);
  return carried != nullptr ? carried : built;
}

}  // namespace lathe::testing
