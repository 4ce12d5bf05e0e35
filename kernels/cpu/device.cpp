#include "kernels/device/device.h"
#include "kernels/device/copy_queue.h"
#include "kernels/device/worker_queue.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/threads.h"
#include "kernels/device/arena.h"
#include "kernels/ops.h"

namespace lathe {

namespace {

// The text after the colon of the first line of a /proc file that starts with `key`.
std::string proc_value(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t value = line.find_first_not_of(" \t:", key.size());
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

// What remains of a control group's memory limit; SIZE_MAX without one.
size_t cgroup_available() {
  size_t limit = 0, used = 0;
  std::ifstream limit_file("/sys/fs/cgroup/memory.max"), used_file("/sys/fs/cgroup/memory.current");
  if (!(limit_file >> limit) || !(used_file >> used)) return SIZE_MAX;
  return limit > used ? limit - used : 0;
}

// Memory available without swapping, in bytes; SIZE_MAX if the system does not report it.
size_t memory_available() {
  const std::string kibibytes = proc_value("/proc/meminfo", "MemAvailable");
  const size_t free = kibibytes.empty() ? SIZE_MAX : std::stoull(kibibytes) * 1024;
  return std::min(free, cgroup_available());
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) {
    LATHE_CHECK(threads >= 0);
    if (threads > 0) cpu::set_max_threads(threads);
  }

  DeviceKind kind() const override { return DeviceKind::cpu; }
  std::string name() const override {
    std::string model = proc_value("/proc/cpuinfo", "model name");
    if (model.empty()) model = "CPU";
    return fmt::format("{}, {} thread{}, {}", model, cpu::max_threads(),
                       cpu::max_threads() == 1 ? "" : "s", cpu::matmul_backend_name());
  }

  // Unknown: no CPU reports the clock that it keeps with all its vector or matrix units busy.
  double peak_flops(DType) const override { return 0; }

  // The system overcommits and would kill the run later, so refuse here what cannot fit.
  void* allocate(size_t bytes, MemorySpace) override {
    LATHE_CHECK(bytes > 0);
    const size_t available = memory_available();
    void* memory = bytes > available ? nullptr : map(bytes);
    if (memory == nullptr) {
      throw UserError(
          "{:.1f} GiB of memory are needed and {:.1f} GiB available: lower --batch-size, "
          "--seq-len or the size of the model",
          gibibytes(bytes), gibibytes(available));
    }
    return memory;
  }

  void release(void* memory, size_t bytes, MemorySpace) noexcept override {
    if (kSeparateAllocations) {
      std::free(memory);
    } else if (memory) {
      munmap(memory, bytes);
    }
  }

  void upload(const Tensor& destination, const void* source) override {
    if (destination.bytes() > 0) std::memcpy(destination.data, source, destination.bytes());
  }
  void download(void* destination, const Tensor& source) override {
    if (source.bytes() > 0) std::memcpy(destination, source.data, source.bytes());
  }
  void zero(const Tensor& tensor) override {
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
  }
  void copy(const Tensor& destination, const Tensor& source) override {
    LATHE_CHECK(destination.bytes() == source.bytes());
    download(destination.data, source);
  }
  void synchronize() override {}
  std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<WorkerCopies>(*this);
  }

  // Everything is done on return, so there is nothing to record and nothing to wait for.
  bool asynchronous() const override { return false; }
  void replay(int, const std::function<void()>& body) override { body(); }

  void read_back(int slot, const Tensor& source) override {
    read_backs_.at(static_cast<size_t>(slot)).resize(source.bytes());
    download(read_backs_[static_cast<size_t>(slot)].data(), source);
  }
  void collect(int slot, void* destination) override {
    const std::vector<char>& copy = read_backs_.at(static_cast<size_t>(slot));
    std::memcpy(destination, copy.data(), copy.size());
  }

  void mark(int number) override {
    const size_t index = static_cast<size_t>(number);
    const std::lock_guard lock(marks_mutex_);
    if (index >= marks_.size()) marks_.resize(index + 1);
    marks_[index] = Clock::now();
  }
  double milliseconds_between(int from, int to) override {
    const std::lock_guard lock(marks_mutex_);
    return std::chrono::duration<double, std::milli>(marks_.at(static_cast<size_t>(to)) -
                                                     marks_.at(static_cast<size_t>(from)))
        .count();
  }

  const Ops& ops(DType dtype) override {
    std::unique_ptr<Ops>& table = tables_.at(static_cast<size_t>(dtype));
    if (!table) table = cpu::make_cpu_ops(dtype, matmul_);
    return *table;
  }

 private:
  // A thread copies and calls while the others compute.
  class WorkerCopies final : public CopyQueue {
   public:
    explicit WorkerCopies(Device& device)
        : queue_(device, {.run = run, .idle = [] {}, .fail = [] { std::abort(); }}) {}
    Ticket copy(const Tensor& to, const Tensor& from) override {
      LATHE_CHECK(to.bytes() == from.bytes());
      return queue_.put(Job{to.data, from.data, to.bytes(), {}});
    }
    Ticket call(std::function<void()> body) override {
      return queue_.put(Job{.body = std::move(body)});
    }
    Queue& queue() override { return queue_; }

   private:
    struct Job {
      void* to = nullptr;
      const void* from = nullptr;
      size_t bytes = 0;
      std::function<void()> body{};  // instead of a copy
    };
    static void run(const Job& job) {
      if (job.body) return job.body();
      if (job.bytes > 0) std::memcpy(job.to, job.from, job.bytes);
    }
    WorkerQueue<Job> queue_;
  };

  static double gibibytes(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

  // Zeroed memory, or null.
  static void* map(size_t bytes) {
    if (kSeparateAllocations) {
      void* memory = nullptr;
      if (posix_memalign(&memory, kArenaAlignment, bytes) != 0) return nullptr;
      return std::memset(memory, 0, bytes);
    }
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    madvise(memory, bytes, MADV_HUGEPAGE);  // only for fewer TLB misses
    return memory;
  }

  using Clock = std::chrono::steady_clock;

  cpu::MatmulContext matmul_;
  std::array<std::vector<char>, kReadBacks> read_backs_;
  std::mutex marks_mutex_;  // the thread of the collectives also sets marks
  std::vector<Clock::time_point> marks_;
  std::array<std::unique_ptr<Ops>, 6> tables_;  // by DType
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  return std::make_unique<CpuDevice>(threads);
}

}  // namespace lathe
