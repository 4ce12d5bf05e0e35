#include "src/comm/watchdog.h"

#include <algorithm>
#include <chrono>

#include "kernels/device/backoff.h"
#include "kernels/device/error.h"

namespace lathe {

namespace {

constexpr std::chrono::milliseconds kLook(50);
constexpr double kAnswerSeconds = 2;
constexpr double kErrorAfterSeconds = 1;  // without progress: then ask the library

// Where another rank is, for the message of a rank that waits.
std::string account(int rank, const std::optional<CollectiveStatus>& status) {
  if (!status) return fmt::format("rank {} does not answer", rank);
  if (status->begun == 0) return fmt::format("rank {} has started none", rank);
  const char* const state = status->begun == status->done ? "has done" : "is in";
  return fmt::format("rank {} {} collective {}, {}", rank, state, status->begun, status->what);
}

}  // namespace

Watchdog::Watchdog(const World& world, const RankGroup& ranks, double timeout_seconds,
                   StatusBoard::Mine status, Error error)
    : world_(world),
      group_(ranks),
      timeout_seconds_(timeout_seconds),
      status_(std::move(status)),
      error_(std::move(error)),
      board_(make_status_board(world, ranks)),
      thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  thread_.join();
}

void Watchdog::watch() {
  CollectiveStatus before;
  Patience patience;
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, kLook, [this] { return stop_; })) {
    if (board_) board_->answer(status_);
    const CollectiveStatus status = status_();
    const bool stalled =
        status.begun != status.done && status.begun == before.begun && status.done == before.done;
    if (!stalled) patience = {};
    const double stalled_seconds = patience.waited();
    before = status;
    const std::string error = stalled_seconds > kErrorAfterSeconds ? error_() : "";
    if (!error.empty())
      world_.fail(
          fmt::format("collective {}{}, {}: {}", status.begun, group_.text(), status.what, error));
    if (stalled_seconds > timeout_seconds_) fail(status);
  }
}

void Watchdog::fail(const CollectiveStatus& mine) {
  std::string others;
  if (board_) {
    const auto all = board_->ask(status_, kAnswerSeconds);
    for (int rank = 0; rank < group_.size(); ++rank) {
      const auto& status = all[static_cast<size_t>(rank)];
      const bool here = status && status->begun == mine.begun && status->done == mine.done;
      if (rank != group_.rank && !here) others += "; " + account(group_.of_job(rank), status);
    }
    if (others.empty()) others = "; all ranks are in it";
  }
  world_.fail(fmt::format("waited {:g} s in collective {}{}, {}: nothing has moved{}",
                          timeout_seconds_, mine.begun, group_.text(), mine.what, others));
}

}  // namespace lathe
