// Ranks on CPUs. Collectives wait in a queue; a thread runs them with MPI, one by one, while the
// caller computes.
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "src/comm/make_communicator.h"
#include "src/comm/mpi_collectives.h"

namespace lathe {

namespace {

// The thread's next task.
struct Job {
  Collective collective;
  int mark = -1;  // instead of a collective
};

// Jobs in the order of the calls, for one consumer thread. Never allocates.
class JobQueue {
 public:
  // Waits if the queue is full.
  Ticket push(const Job& job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return pushed_ - done_ < kCapacity; });
    jobs_[static_cast<size_t>(pushed_ % kCapacity)] = job;
    ++pushed_;
    changed_.notify_all();
    return pushed_;
  }
  // The next job; the consumer ends it with done(). Null when the queue is closed and empty. Calls
  // `idle` regularly while there is no job.
  template <typename Idle>
  const Job* next(const Idle& idle) {
    constexpr std::chrono::milliseconds kEvery(100);
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kEvery, [&] { return done_ < pushed_ || closed_; })) {
      lock.unlock();
      idle();
      lock.lock();
    }
    return done_ < pushed_ ? &jobs_[static_cast<size_t>(done_ % kCapacity)] : nullptr;
  }
  void done() {
    const std::lock_guard lock(mutex_);
    ++done_;
    changed_.notify_all();
  }
  void wait(Ticket ticket) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= ticket; });
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  Ticket pushed() const { return pushed_; }  // for the producer thread

 private:
  static constexpr int64_t kCapacity = 1024;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Job, kCapacity> jobs_;
  int64_t pushed_ = 0, done_ = 0;
  bool closed_ = false;
};

class MpiCommunicator final : public CollectiveCommunicator {
 public:
  MpiCommunicator(const World& world, Device& device, double timeout_seconds)
      : CollectiveCommunicator(world.rank(), world.size()),
        world_(world),
        device_(device),
        collectives_(world, timeout_seconds),
        thread_([this] { work(); }) {}

  // Waits for all collectives that were called; if an error ends this rank, it does not wait for
  // others.
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() > 0) collectives_.give_up();
    queue_.close();
    thread_.join();
  }

  CommKind kind() const override { return CommKind::mpi; }

  // A CPU device has finished its operations when their calls return, so the host does the waiting.
  void after_device() override {}
  void device_after(Ticket ticket) override { wait(ticket); }
  Ticket last() const override { return queue_.pushed(); }
  void wait(Ticket ticket) override { queue_.wait(ticket); }
  void mark(int number) override { queue_.push({{}, number}); }

  void exchange(void* all, const void* mine, size_t bytes) override {
    const auto count = static_cast<int64_t>(bytes);
    wait(call({CollectiveKind::all_gather, DType::uint8, {}, -1, count, mine, all, "exchange"}));
  }

 private:
  Ticket call(const Collective& collective) override { return queue_.push({collective}); }

  void work() {
    try {
      const auto idle = [this] { collectives_.look_while_idle(); };
      while (const Job* job = queue_.next(idle)) {
        if (job->mark >= 0) {
          device_.mark(job->mark);
        } else {
          collectives_.run(job->collective);
        }
        queue_.done();
      }
    } catch (const std::exception&) {  // no caller could catch it
      const Failure failure = current_failure();
      world_.fail(failure.message, failure.exit_code);
    }
  }

  const World& world_;
  Device& device_;
  MpiCollectives collectives_;  // used by the thread only
  JobQueue queue_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const World& world, Device& device,
                                                    const CommunicatorOptions& options) {
  return std::make_unique<MpiCommunicator>(world, device, options.timeout_seconds);
}

}  // namespace lathe
