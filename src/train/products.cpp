#include "src/train/products.h"

#include <algorithm>
#include <string>
#include <vector>

#include "src/io/file.h"

namespace lathe {

void share_plans(Run& run) {
  Device& device = run.trainer.device;
  Communicator& communicator = run.mesh().world();
  const std::string mine = device.plans();
  const std::string shared = communicator.exchange_text(run.mesh().leads() ? mine : "").front();
  const std::vector<std::string> differ = communicator.exchange_text(shared == mine ? "" : "x");
  if (std::ranges::all_of(differ, &std::string::empty)) return;
  if (shared != mine) device.load_plans(shared);
  // On every rank: a collective replayed on one rank must not meet one enqueued directly on
  // another.
  device.forget_recordings();
}

void settle_products(Run& run) {
  share_plans(run);
  write_tuning_log(run);
}

void write_tuning_log(const Run& run) {
  if (run.options().tuning_log.empty() || !run.mesh().leads()) return;
  constexpr std::string_view kHead =
      "shape\tcandidate\talgorithm\ttile\tstages\tsplits\tepilogue\tmilliseconds\tchosen\n";
  write_file(run.options().tuning_log, std::string(kHead) + run.trainer.device.tuning_log());
}

}  // namespace lathe
