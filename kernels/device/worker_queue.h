// A queue that a host thread processes, for a device whose operations are done when their calls
// return: a CPU.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "kernels/device/device.h"
#include "kernels/device/queue.h"

namespace lathe {

// `Job` is copied; put() allocates nothing but what that takes.
template <typename Job>
class WorkerQueue final : public Queue {
 public:
  struct Work {
    std::function<void(const Job&)> run;
    std::function<void()> idle;  // called about every 100 ms while there is nothing to do
    std::function<void()> fail;  // called on an exception of the others; does not return
  };
  WorkerQueue(Device& device, Work work)
      : device_(device), work_(std::move(work)), thread_([this] { loop(); }) {}
  // Waits for all entries.
  ~WorkerQueue() override {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  WorkerQueue(const WorkerQueue&) = delete;
  WorkerQueue& operator=(const WorkerQueue&) = delete;

  // Waits if the queue is full.
  Ticket put(const Job& job) { return put(Entry{job, kNoMark}); }

  void after_device() override {}  // the host has waited already
  void device_after(Ticket ticket) override { wait(ticket); }
  Ticket last() const override { return put_; }
  void wait(Ticket ticket) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= ticket; });
  }
  Ticket mark(int number) override { return put(Entry{{}, number}); }

 private:
  static constexpr int kNoMark = -1;
  struct Entry {
    Job job{};
    int mark = kNoMark;  // instead of the job
  };

  Ticket put(const Entry& entry) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return put_ - done_ < kCapacity; });
    entries_[static_cast<size_t>(put_ % kCapacity)] = entry;
    ++put_;
    changed_.notify_all();
    return put_;
  }

  // The next entry; null when the queue is closed and empty.
  const Entry* next() {
    constexpr std::chrono::milliseconds kEvery(100);
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kEvery, [&] { return done_ < put_ || closed_; })) {
      lock.unlock();
      work_.idle();
      lock.lock();
    }
    return done_ < put_ ? &entries_[static_cast<size_t>(done_ % kCapacity)] : nullptr;
  }

  void loop() {
    try {
      while (const Entry* entry = next()) {
        if (entry->mark == kNoMark) {
          work_.run(entry->job);
        } else {
          device_.mark(entry->mark);
        }
        const std::lock_guard lock(mutex_);
        ++done_;
        changed_.notify_all();
      }
    } catch (const std::exception&) {  // no caller can catch it
      work_.fail();
    }
  }

  static constexpr int64_t kCapacity = 1024;
  Device& device_;
  const Work work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Entry, kCapacity> entries_;
  int64_t put_ = 0, done_ = 0;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace lathe
