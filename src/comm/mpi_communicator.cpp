// Ranks on CPUs. A thread runs the collectives with MPI, one at a time, while the caller computes.
#include <exception>

#include "kernels/device/worker_queue.h"
#include "src/comm/make_communicator.h"
#include "src/comm/mpi_collectives.h"

namespace lathe {

namespace {

class MpiCommunicator final : public CollectiveCommunicator {
 public:
  MpiCommunicator(const World& world, const RankGroup& ranks, Device& device,
                  double timeout_seconds)
      : CollectiveCommunicator(ranks, device, queue_),
        world_(world),
        timeout_seconds_(timeout_seconds),
        collectives_(world, ranks, timeout_seconds),
        queue_(device, {.run = [this](const Collective& c) { collectives_.run(c); },
                        .idle = [this] { collectives_.look_while_idle(); },
                        .fail =
                            [&world] {
                              const Failure failure = current_failure();
                              world.fail(failure.message, failure.exit_code);
                            }}) {}

  // Waits for all collectives that were called; if an error ends this rank, it does not wait for
  // others.
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() > 0) collectives_.give_up();
  }

  CommKind kind() const override { return CommKind::mpi; }

  void exchange(void* all, const void* mine, size_t bytes) override {
    const auto count = static_cast<int64_t>(bytes);
    wait(call({CollectiveKind::all_gather, DType::uint8, {}, -1, count, mine, all, "exchange"}));
  }

 private:
  Ticket call(const Collective& collective) override { return queue_.put(collective); }
  std::unique_ptr<Communicator> make_part(int, int, const RankGroup& part) override {
    if (part.size() < 2) return nullptr;
    return std::make_unique<MpiCommunicator>(world_, part, device_, timeout_seconds_);
  }

  const World& world_;
  const double timeout_seconds_;
  MpiCollectives collectives_;  // used by the queue's thread only
  WorkerQueue<Collective> queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const World& world, Device& device,
                                                    const CommunicatorOptions& options) {
  return std::make_unique<MpiCommunicator>(world, all_ranks(world), device,
                                           options.timeout_seconds);
}

}  // namespace lathe
