#include "src/comm/communicator.h"

#include <algorithm>
#include <cstring>

#include "src/comm/make_communicator.h"

namespace lathe {

namespace {

// All ranks must make the same choice, whatever is installed on each host.
bool all_have_nccl(const World& world, std::string* why_not) {
  const bool here = nccl_is_here(why_not);
  if (!world.has_mpi()) return here;
  const uint8_t mine = here ? 1 : 0;
  std::vector<uint8_t> all(static_cast<size_t>(world.size()));
  world.exchange(all.data(), &mine, sizeof(mine), "whether each rank has NCCL");
  return std::all_of(all.begin(), all.end(), [](uint8_t has) { return has == 1; });
}

}  // namespace

std::string_view name_of(CommKind kind) {
  constexpr std::string_view kNames[] = {"auto", "self", "mpi", "nccl"};
  return kNames[static_cast<size_t>(kind)];
}

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
  LATHE_CHECK(options.kind != CommKind::self, "{}", name_of(options.kind));
  const bool cuda = device.kind() == DeviceKind::cuda;
  if (options.kind == CommKind::nccl && !cuda)
    throw UserError("--comm nccl: NCCL is for GPUs, and this is --device {}; use --comm mpi",
                    name_of(device.kind()));
  world.set_timeout(options.timeout_seconds);
  // All ranks create an MPI or NCCL communicator together, and creating one waits without limit for
  // missing ranks. This exchange has a timeout.
  if (world.has_mpi()) world.exchange(nullptr, nullptr, 0, "start of the communication");
  if (options.kind == CommKind::nccl) return make_nccl_communicator(world, device, options);
  if (world.size() == 1) return make_self_communicator(device);
  std::string why_no_nccl;
  if (cuda && options.kind == CommKind::any && all_have_nccl(world, &why_no_nccl))
    return make_nccl_communicator(world, device, options);
  if (!world.has_mpi()) {
    throw UserError(
        "{} ranks were started without MPI, which they need to communicate: start them "
        "with mpirun{}{}",
        world.size(), why_no_nccl.empty() ? "" : ", or make NCCL available: ", why_no_nccl);
  }
  return cuda ? make_cuda_mpi_communicator(world, device, options)
              : make_mpi_communicator(world, device, options);
}

}  // namespace lathe
