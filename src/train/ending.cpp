#include "src/train/ending.h"

#include <limits>
#include <vector>

namespace lathe {

namespace {

// More than the number of ranks, so that one sum of votes carries both answers.
constexpr double kNoBatch = double{1 << 30};

}  // namespace

Ending::Ending(Run& run, bool signals) : run_(run) {
  if (signals) stop_.emplace();
}

bool Ending::ask_all() {
  if (run_.mesh().ranks() == 1) return requested();
  const char mine = requested() ? 1 : 0;
  std::vector<char> all(static_cast<size_t>(run_.mesh().ranks()));
  run_.mesh().world().exchange(all.data(), &mine, sizeof(mine));
  for (const char vote : all) known_to_all_ = known_to_all_ || vote != 0;
  return known_to_all_;
}

StepVote Ending::vote(bool ready) const {
  if (!ready) return {.stop = kNoBatch, .loss = std::numeric_limits<double>::quiet_NaN()};
  return {.stop = requested() ? 1.0 : 0.0};
}

bool Ending::count(const StepResults& results) {
  known_to_all_ = known_to_all_ || results.stop_votes > 0;
  return results.stop_votes < kNoBatch;
}

void Ending::rethrow() const {
  if (failure_) std::rethrow_exception(failure_);
}

}  // namespace lathe
