// Checks what must be the same on every rank, and reports which ranks differ.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "src/comm/communicator.h"

namespace lathe {

// XXH3-128 of a tensor's bytes. Waits for the device.
std::string digest_of(Device& device, const Tensor& tensor);

// If `mine` differs between ranks, throws on every rank a UserError of one sentence: "WHAT of ranks
// 2, 3 differ from rank 0's: ADVICE".
void require_same(Communicator& communicator, std::string_view what, std::string_view mine,
                  std::string_view advice);

// Identifies a data set without reading all of it: names and sizes of its shards, tokens sampled
// from them, and the digest of its tokenizer. Empty for no directory.
std::string data_fingerprint(const std::string& directory);

// Requires the same program, configuration and data on every rank. Otherwise the ranks would
// compute nonsense or wait forever. `configuration` and `data` are compared as texts.
void require_same_world(Communicator& communicator, std::string_view configuration,
                        std::string_view data);

// Requires that all ranks see the same directory --out, because they write one checkpoint together.
// Call it at the start, so that the first save cannot fail for this reason.
void require_one_out(Communicator& communicator, const std::filesystem::path& out);

// Runs `part` on all ranks and returns when all are done. If it throws on one rank, `undo` runs on
// every rank; then that rank rethrows its error, and the others wait for the job to end.
void do_together(Communicator& communicator, const std::function<void()>& part,
                 const std::function<void()>& undo);

}  // namespace lathe
