// Counts heap allocations made through operator new: link allocations.cpp into the test.
#pragma once

#include <cstddef>

namespace lathe::testing {

// Bytes that operator new has returned so far in this process, libraries included.
size_t allocated_bytes();

}  // namespace lathe::testing
