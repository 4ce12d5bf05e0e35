// Ends the job where a GPU's collectives stand still. NCCL itself waits for ever.
//
// A thread of the host looks at two numbers that the line of collectives writes into host memory:
// the collective that was begun last, and the one that was done last. Where they differ and do not
// change for the timeout, it asks the other ranks' watchdogs where they are, tells who is missing,
// and ends the job. Where the ranks are not MPI's, nobody can be asked, and it names the collective
// alone.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "src/comm/world.h"

namespace lathe {

// Where a rank's line is. Numbers of collectives, as the line writes them; 0: none.
struct LineStatus {
  int32_t begun = 0, done = 0;
  char what[64] = {};  // the last that was begun
};

// How watchdogs ask each other; mpi_status_board.cpp, or none without MPI.
class StatusBoard {
 public:
  using Mine = std::function<LineStatus()>;
  virtual ~StatusBoard() = default;
  // Answers whoever has asked.
  virtual void answer(const Mine& mine) = 0;
  // By rank; nothing from those that do not answer in time.
  virtual std::vector<std::optional<LineStatus>> ask(const Mine& mine, double seconds) = 0;
};

// Waits for all ranks. Null where MPI does not know them.
std::unique_ptr<StatusBoard> make_status_board(const World& world);

class Watchdog {
 public:
  // Both are called by the watchdog's thread. `error`: what the library says went wrong, or "";
  // called only while the line stands still.
  using Error = std::function<std::string()>;
  Watchdog(const World& world, double timeout_seconds, StatusBoard::Mine status, Error error);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch();
  [[noreturn]] void fail(const LineStatus& mine);

  const World& world_;
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
