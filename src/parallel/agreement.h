// What must be the same on every rank, and what is said where it is not.
#pragma once

#include <string>
#include <string_view>

#include "src/parallel/communicator.h"

namespace lathe {

// XXH3-128 of a tensor's bytes. Waits for the device.
std::string digest_of(Device& device, const Tensor& tensor);

// Throws on every rank, a UserError of one sentence: "WHAT of ranks 2 and 3 differ from rank 0's:
// ADVICE".
void require_same(Communicator& communicator, std::string_view what, std::string_view mine,
                  std::string_view advice);

// A world that is wrong would compute nonsense or wait for ever: the same program, configuration
// and data everywhere. `configuration` and `data` are compared as texts.
void require_same_world(Communicator& communicator, std::string_view configuration,
                        std::string_view data);

}  // namespace lathe
