// The training program on a late device: a CPU that does nothing until the host waits for it, and
// then only what the host waits for. It replays recordings without calling the host's code again.
// If the program reads without waiting, frees or changes memory too early, or uses a value of the
// host that should be in device memory, the numbers differ from the plain CPU's.
//
// This file replaces kernels/device/make_device.cpp.
#include <array>
#include <chrono>
#include <cstring>
#include <deque>
#include <iostream>
#include <map>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/device/copy_queue.h"
#include "kernels/device/in_order_queue.h"
#include "kernels/ops.h"

namespace lathe {
namespace {

using Work = std::function<void()>;

// Work in the order of enqueueing, and recordings of it.
class Queue {
 public:
  void push(Work work) {
    if (recording_) recording_->push_back(work);
    waiting_.push_back(std::move(work));
    ++pushed_;
  }
  uint64_t pushed() const { return pushed_; }
  // Runs all that was pushed before `end`.
  void run_until(uint64_t end) {
    while (done_ < end) {
      const Work work = std::move(waiting_.front());
      waiting_.pop_front();
      work();
      ++done_;
    }
  }
  void replay(int key, const Work& body) {
    const auto [entry, fresh] = recordings_.try_emplace(key);
    if (!fresh) {
      for (const Work& work : entry->second) push(work);
      return;
    }
    recording_ = &entry->second;
    body();
    recording_ = nullptr;
  }
  bool recording() const { return recording_ != nullptr; }

 private:
  std::deque<Work> waiting_;
  uint64_t pushed_ = 0, done_ = 0;
  std::map<int, std::vector<Work>> recordings_;
  std::vector<Work>* recording_ = nullptr;
};

class LateOps final : public ImplementsOps<LateOps> {
 public:
  LateOps(const Ops& real, Queue& queue) : real_(real), queue_(queue) {}

  DType dtype() const override { return real_.dtype(); }

  template <typename Args>
  void call(const Args& args, const Tensor& workspace) const {
    queue_.push([&real = real_, args, workspace] { real.run(args, workspace); });
  }
  template <typename Args>
  size_t bytes(const Args& args) const {
    return real_.workspace_bytes(args);
  }

 private:
  const Ops& real_;
  Queue& queue_;
};

class LateDevice final : public Device {
 public:
  explicit LateDevice(int threads) : cpu_(make_cpu_device(threads)) {}
  ~LateDevice() override {
    std::cout << fmt::format("late device: at most {} steps in flight\n", most_read_backs_);
  }

  DeviceKind kind() const override { return DeviceKind::cpu; }
  std::string name() const override { return cpu_->name(); }
  double peak_flops(DType dtype) const override { return cpu_->peak_flops(dtype); }
  void* allocate(size_t bytes, MemorySpace space) override { return cpu_->allocate(bytes, space); }
  void release(void* memory, size_t bytes, MemorySpace space) noexcept override {
    queue_.run_until(queue_.pushed());
    cpu_->release(memory, bytes, space);
  }

  void upload(const Tensor& destination, const void* source) override {
    LATHE_CHECK(!queue_.recording(), "a recording holds a copy from the host");
    const char* bytes = static_cast<const char*>(source);
    queue_.push([this, destination, copy = std::vector(bytes, bytes + destination.bytes())] {
      cpu_->upload(destination, copy.data());
    });
  }
  void download(void* destination, const Tensor& source) override {
    synchronize();
    cpu_->download(destination, source);
  }
  void zero(const Tensor& tensor) override {
    queue_.push([this, tensor] { cpu_->zero(tensor); });
  }
  void copy(const Tensor& destination, const Tensor& source) override {
    queue_.push([this, destination, source] { cpu_->copy(destination, source); });
  }
  void synchronize() override {
    LATHE_CHECK(!queue_.recording(), "the host must not wait while recording");
    queue_.run_until(queue_.pushed());
  }

  std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<LateCopies>(*this);
  }
  bool asynchronous() const override { return true; }
  void replay(int key, const Work& body) override { queue_.replay(key, body); }

  void read_back(int slot, const Tensor& source) override {
    LATHE_CHECK(!queue_.recording(), "a recording holds a copy to the host");
    ReadBack& copy = read_backs_.at(static_cast<size_t>(slot));
    LATHE_CHECK(!copy.taken, "the slot is taken");
    copy.taken = true;
    queue_.push([this, &copy, source] {
      copy.bytes.resize(source.bytes());
      cpu_->download(copy.bytes.data(), source);
    });
    copy.end = queue_.pushed();
    most_read_backs_ = std::max(most_read_backs_, ++in_flight_);
  }
  void collect(int slot, void* destination) override {
    ReadBack& copy = read_backs_.at(static_cast<size_t>(slot));
    LATHE_CHECK(copy.taken, "nothing was read back");
    copy.taken = false;
    --in_flight_;
    queue_.run_until(copy.end);
    std::memcpy(destination, copy.bytes.data(), copy.bytes.size());
  }

  void mark(int number) override {
    queue_.push([this, number] { marks_[number] = std::chrono::steady_clock::now(); });
  }
  double milliseconds_between(int from, int to) override {
    LATHE_CHECK(marks_.at(to) >= marks_.at(from), "mark {} was passed before {}", to, from);
    return std::chrono::duration<double, std::milli>(marks_[to] - marks_[from]).count();
  }

  // Grows by one entry with each resume.
  std::string plans() const override { return "plans of a late device\t" + plans_; }
  void load_plans(const std::string& text) override {
    LATHE_CHECK(marks_.empty(), "plans come before the first step");
    plans_ = text;
  }

  const Ops& ops(DType dtype) override {
    std::unique_ptr<Ops>& table = tables_[dtype];
    if (!table) table = std::make_unique<LateOps>(cpu_->ops(dtype), queue_);
    return *table;
  }

 private:
  struct ReadBack {
    bool taken = false;
    uint64_t end = 0;  // the work that must be done before it is complete
    std::vector<char> bytes;
  };

  class LateCopies final : public CopyQueue {
   public:
    explicit LateCopies(LateDevice& device) : device_(device), order_(device) {}
    Ticket copy(const Tensor& to, const Tensor& from) override {
      device_.copy(to, from);
      return order_.put();
    }
    Ticket call(Work body) override {
      device_.queue_.push(std::move(body));
      return order_.put();
    }
    lathe::Queue& queue() override { return order_; }

   private:
    LateDevice& device_;
    InOrderQueue order_;
  };

  std::unique_ptr<Device> cpu_;
  Queue queue_;
  std::array<ReadBack, kReadBacks> read_backs_;
  int in_flight_ = 0, most_read_backs_ = 0;
  std::map<int, std::chrono::steady_clock::time_point> marks_;
  std::string plans_;
  std::map<DType, std::unique_ptr<Ops>> tables_;
};

}  // namespace

int cuda_device_count() {
  return 0;
}

std::unique_ptr<Device> make_device(DeviceKind, int threads, const CudaDeviceOptions&) {
  return std::make_unique<LateDevice>(threads);
}

}  // namespace lathe
