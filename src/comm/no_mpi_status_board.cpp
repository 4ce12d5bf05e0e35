// Replaces mpi_status_board.cpp in a build without MPI: ranks cannot ask each other.
#include "src/comm/watchdog.h"

namespace lathe {

std::unique_ptr<StatusBoard> make_status_board(const World&, const RankGroup&) {
  return nullptr;
}

}  // namespace lathe
