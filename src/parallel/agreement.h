// What must be the same on every rank, and what is said where it is not.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "src/comm/communicator.h"

namespace lathe {

// XXH3-128 of a tensor's bytes. Waits for the device.
std::string digest_of(Device& device, const Tensor& tensor);

// Throws on every rank, a UserError of one sentence: "WHAT of ranks 2 and 3 differ from rank 0's:
// ADVICE".
void require_same(Communicator& communicator, std::string_view what, std::string_view mine,
                  std::string_view advice);

// Names and sizes of all shards of --data with tokens from all over them, and the tokenizer: what
// tells data sets apart without reading them. Empty for no directory.
std::string data_fingerprint(const std::string& directory);

// A world that is wrong would compute nonsense or wait for ever: the same program, configuration
// and data everywhere. `configuration` and `data` are compared as texts.
void require_same_world(Communicator& communicator, std::string_view configuration,
                        std::string_view data);

// All ranks write into one checkpoint, so they must see one --out: better known now than at the
// first save.
void require_one_out(Communicator& communicator, const std::filesystem::path& out);

// All ranks do their part; it is done on all when the call returns. If it throws on one, `undo`
// runs on every rank, then that rank's error is thrown there, and the others wait for the job's
// end.
void do_together(Communicator& communicator, const std::function<void()>& part,
                 const std::function<void()>& undo);

}  // namespace lathe
