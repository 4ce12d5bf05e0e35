// Replaces nccl_communicator.cpp in a build without NCCL.
#include "src/comm/make_communicator.h"

namespace lathe {

namespace {

constexpr const char* kWhy =
    "--comm nccl: this build has no NCCL; use --comm mpi, or build where nccl.h is found";

}  // namespace

bool nccl_is_here(std::string* why_not) {
  *why_not = kWhy;
  return false;
}

std::unique_ptr<Communicator> make_nccl_communicator(const World&, Device&,
                                                     const CommunicatorOptions&) {
  throw UserError("{}", kWhy);
}

}  // namespace lathe
