// States in a file are in memory when they are needed, whenever host functions run that may run.
// Another entry of ctest runs this with a slow disk (tests/io/faulty_disk.cpp).
#include "src/model/file_states.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <random>

#include "kernels/imagined_device.h"

namespace lathe::testing {
namespace {

// Host functions run when they are enqueued, or when something waits for them.
class Calls final : public CopyQueue, public Queue {
 public:
  explicit Calls(bool late) : late_(late) {}
  ~Calls() override { run(last()); }
  Ticket copy(const Tensor&, const Tensor&) override { return last(); }
  Ticket call(std::function<void()> body) override {
    pending_.push_back(std::move(body));
    if (!late_) run(last());
    return last();
  }
  Queue& queue() override { return *this; }
  void after_device() override {}
  void device_after(Ticket ticket) override { run(ticket); }
  Ticket last() const override { return static_cast<Ticket>(pending_.size()); }
  void wait(Ticket ticket) override { run(ticket); }
  Ticket mark(int) override { return last(); }

 private:
  void run(Ticket until) {
    for (; done_ < until; ++done_) pending_[static_cast<size_t>(done_)]();
  }
  bool late_;
  std::vector<std::function<void()>> pending_;
  Ticket done_ = 0;
};

// Its memory exists.
class CallingDevice final : public ImaginedDevice {
 public:
  CallingDevice(Device& real, bool late) : ImaginedDevice(real), real_(real), late_(late) {}
  void* allocate(size_t bytes, MemorySpace space) override { return real_.allocate(bytes, space); }
  void release(void* memory, size_t bytes, MemorySpace space) noexcept override {
    real_.release(memory, bytes, space);
  }
  std::unique_ptr<CopyQueue> make_copy_queue() override { return std::make_unique<Calls>(late_); }

 private:
  Device& real_;
  bool late_;
};

// A float for each element of each state of each chunk.
using Values = std::vector<std::map<std::string, std::vector<float>>>;

void expect_and_change(const StateTensors& states, std::map<std::string, std::vector<float>>& now,
                       float change) {
  const std::pair<std::string, Tensor> all[] = {
      {"masters", states.masters}, {"m", states.m}, {"v", states.v}};
  for (const auto& [name, tensor] : all) {
    if (!tensor) continue;
    std::vector<float>& values = now[name];
    values.resize(static_cast<size_t>(tensor.elements()));  // zeros at first
    float* const memory = tensor.as<float>();
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(memory[i], values[i]) << name << ", element " << i;
      values[i] += change * static_cast<float>(i + 1 + name.size());
      memory[i] = values[i];
    }
  }
}

// Some steps, and between them changes and reads of single chunks.
void train(Device& device, size_t count, bool masters) {
  std::vector<int64_t> chunks;
  for (size_t c = 0; c < count; ++c) chunks.push_back(static_cast<int64_t>(128 * (1 + 7 * c % 11)));
  const MemoryPlan plan = count_memory(device, [&](Device&, Arena& arena) {
    FileStates(::testing::TempDir(), DType::fp32, masters, chunks, arena);
  });
  Arena arena(device, plan.total(), plan.total(MemorySpace::pinned));
  FileStates states(::testing::TempDir(), DType::fp32, masters, chunks, arena);
  EXPECT_EQ(arena.used(), plan);
  EXPECT_EQ(plan.total(MemorySpace::file), states.file_bytes());
  Values values(count);
  std::mt19937 random(static_cast<unsigned>(count));
  for (int step = 0; step < 6; ++step) {
    for (size_t c = 0; c < count; ++c) {
      states.need(c);
      expect_and_change(states.at(c), values[c], 1 + 0.5f * static_cast<float>(step));
      states.release(c);
    }
    for (int i = 0; i < 4; ++i) {
      const size_t c = random() % count;
      states.open(c);
      if (random() % 2) {
        expect_and_change(states.at(c), values[c], 0);
      } else {
        expect_and_change(states.at(c), values[c], 2);
        states.keep(c);
      }
    }
  }
  states.rethrow();
}

TEST(FileStates, ASlowDiskIsSlow) {
  if (std::getenv("LATHE_DISK_FAULT") == nullptr) GTEST_SKIP() << "the disk is as it is";
  std::ifstream maps("/proc/self/maps");
  const std::string all(std::istreambuf_iterator<char>(maps), {});
  EXPECT_NE(all.find("lathe_faulty_disk"), std::string::npos) << "the library was not loaded";
}

TEST(FileStates, AreThereWhenTheyAreNeeded) {
  const std::unique_ptr<Device> cpu = make_cpu_device();
  for (const bool masters : {false, true}) {
    for (size_t count = 1; count <= 8; ++count) {
      SCOPED_TRACE(count);
      train(*cpu, count, masters);
      for (const bool late : {false, true}) {
        CallingDevice device(*cpu, late);
        train(device, count, masters);
      }
    }
  }
}

// In a step every chunk is written once, and read once before it is needed, unless it is still in
// its slot.
TEST(FileStates, AreReadAhead) {
  const std::unique_ptr<Device> cpu = make_cpu_device();
  CallingDevice device(*cpu, /*late=*/false);
  constexpr int64_t kElements = 2048;  // 16 KiB of m and v
  for (size_t count = 1; count <= 8; ++count) {
    SCOPED_TRACE(count);
    Arena arena(device, 1 << 20, 1 << 20);
    FileStates states(::testing::TempDir(), DType::fp32, /*masters=*/false,
                      std::vector<int64_t>(count, kElements), arena);
    const uint64_t each = states.file_bytes() / count;
    // Of chunks first to end - 1, those that are still in their slots after a step.
    const auto stay = [count](size_t first, size_t end) {
      size_t staying = 0;
      for (size_t c = first; c < end; ++c) staying += c + 3 >= count;
      return std::min(staying, std::min(count, end));
    };
    for (int step = 0; step < 3; ++step) {
      for (size_t c = 0; c < count; ++c) {
        const uint64_t before = states.bytes_read();
        states.need(c);
        if (step > 0) {
          EXPECT_EQ(states.bytes_read(), before) << "chunk " << c;
        }
        states.release(c);
      }
      const auto steps = static_cast<size_t>(step);
      EXPECT_EQ(states.bytes_written(), states.file_bytes() * (steps + 1));
      EXPECT_EQ(states.bytes_read(),
                each * ((count - stay(0, 3)) * steps + std::min<size_t>(2, count) - stay(0, 2)));
    }
  }
}

}  // namespace
}  // namespace lathe::testing
