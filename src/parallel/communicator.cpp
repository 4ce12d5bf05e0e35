#include "src/parallel/communicator.h"

#include <algorithm>
#include <cstring>

#include "src/parallel/make_communicator.h"

namespace lathe {

std::vector<std::string> Communicator::exchange_text(std::string_view mine) {
  const auto ranks = static_cast<size_t>(size());
  std::vector<uint64_t> lengths(ranks);
  const uint64_t length = mine.size();
  exchange(lengths.data(), &length, sizeof(length));
  const size_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<std::string> texts(ranks);
  if (longest == 0) return texts;
  std::string padded(mine), all(longest * ranks, '\0');
  padded.resize(longest);
  exchange(all.data(), padded.data(), longest);
  for (size_t rank = 0; rank < ranks; ++rank)
    texts[rank] = all.substr(rank * longest, lengths[rank]);
  return texts;
}

void Communicator::barrier() {
  exchange(nullptr, nullptr, 0);
}

std::unique_ptr<Communicator> make_communicator(const World& world, Device& device,
                                                const CommunicatorOptions& options) {
  LATHE_CHECK(options.kind == "auto" || options.kind == "mpi" || options.kind == "nccl", "{}",
              options.kind);
  if (world.size() == 1) return make_self_communicator(device);
  if (!world.has_mpi()) {
    throw UserError(
        "{} ranks were started without MPI, which ranks need to talk to each other: start them "
        "with mpirun",
        world.size());
  }
  return make_mpi_communicator(world, device, options);
}

}  // namespace lathe
