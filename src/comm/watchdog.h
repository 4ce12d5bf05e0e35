// Ends the job if a GPU's collectives hang. NCCL itself would wait for ever.
//
// A host thread watches two numbers that the stream of collectives writes into host memory: the
// last collective started and the last one done. If they differ and do not change for the timeout,
// it asks the other ranks' watchdogs where they are, prints which ranks are missing, and ends the
// job. Without MPI it cannot ask, and prints only the collective.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "src/comm/rank_group.h"
#include "src/comm/world.h"

namespace lathe {

// Where a rank's stream of collectives is. Numbers as the stream writes them; 0: none.
struct CollectiveStatus {
  int32_t begun = 0, done = 0;
  char what[64] = {};  // the last collective started
};

// How watchdogs ask each other: mpi_status_board.cpp, or nothing without MPI.
class StatusBoard {
 public:
  using Mine = std::function<CollectiveStatus()>;
  virtual ~StatusBoard() = default;
  // Answers all ranks that have asked.
  virtual void answer(const Mine& mine) = 0;
  // By rank of the group; empty for ranks that do not answer in time.
  virtual std::vector<std::optional<CollectiveStatus>> ask(const Mine& mine, double seconds) = 0;
};

// Among these ranks; waits for all of them. Null if they are not MPI's.
std::unique_ptr<StatusBoard> make_status_board(const World& world, const RankGroup& ranks);

class Watchdog {
 public:
  // The watchdog's thread calls both. `error` returns the library's error message, or ""; it is
  // called only while the stream makes no progress.
  using Error = std::function<std::string()>;
  Watchdog(const World& world, const RankGroup& ranks, double timeout_seconds,
           StatusBoard::Mine status, Error error);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch();
  [[noreturn]] void fail(const CollectiveStatus& mine);

  const World& world_;
  const RankGroup group_;
  const double timeout_seconds_;
  const StatusBoard::Mine status_;
  const Error error_;
  const std::unique_ptr<StatusBoard> board_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lathe
