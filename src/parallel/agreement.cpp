#include "src/parallel/agreement.h"

#include <algorithm>
#include <vector>

#include "src/io/file.h"

namespace lathe {

std::string digest_of(Device& device, const Tensor& tensor) {
  constexpr int64_t kChunk = int64_t{4} << 20;  // elements that pass through the host at a time
  Hasher hasher;
  std::vector<char> bytes;
  const Tensor flat = tensor.reshaped({tensor.elements()});
  for (int64_t first = 0; first < flat.elements(); first += kChunk) {
    const Tensor part = flat.rows(first, std::min(kChunk, flat.elements() - first));
    bytes.resize(part.bytes());
    device.download(bytes.data(), part);
    hasher.update(bytes.data(), bytes.size());
  }
  return hasher.digest().xxh128;
}

void require_same(Communicator& communicator, std::string_view what, std::string_view mine,
                  std::string_view advice) {
  const std::vector<std::string> all = communicator.exchange_text(mine);
  std::vector<size_t> others;
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] != all[0]) others.push_back(r);
  }
  if (others.empty()) return;
  throw UserError("{} of rank{} {} differ from rank 0's: {}", what, others.size() > 1 ? "s" : "",
                  fmt::join(others, ", "), advice);
}

void require_same_world(Communicator& communicator, std::string_view configuration,
                        std::string_view data) {
  require_same(communicator, "the program files", digest_file("/proc/self/exe").xxh128,
               "start the same build on every host");
  require_same(communicator, "the flags", configuration,
               "give every rank the same flags and --config");
  require_same(communicator, "the data", data,
               "--data must hold the same shards and tokenizer on every host");
}

}  // namespace lathe
