// The inputs of layers are where they are read, whenever the copies run that are allowed to run.
#include "src/model/input_offload.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>
#include <vector>

#include "kernels/imagined_device.h"

namespace lathe::testing {
namespace {

// Which unit's input lies at an address.
using Contents = std::map<const void*, int64_t>;

// Copies as early as after_device() allows, or as late as device_after() does.
class Copies final : public CopyQueue, public Queue {
 public:
  Copies(Contents& contents, bool late, int64_t& count)
      : contents_(contents), late_(late), count_(count) {}

  Ticket copy(const Tensor& to, const Tensor& from) override {
    pending_.emplace_back(to.data, from.data);
    ++count_;
    if (!late_) run(last());
    return last();
  }
  Ticket call(std::function<void()>) override { return last(); }
  Queue& queue() override { return *this; }
  void after_device() override {}
  void device_after(Ticket ticket) override { run(ticket); }
  Ticket last() const override { return static_cast<Ticket>(pending_.size()); }
  void wait(Ticket ticket) override { run(ticket); }
  Ticket mark(int) override { return 0; }

 private:
  void run(Ticket until) {
    for (; done_ < until; ++done_) {
      const auto& [to, from] = pending_[static_cast<size_t>(done_)];
      contents_[to] = contents_.at(from);
    }
  }

  Contents& contents_;
  bool late_;
  int64_t& count_;
  std::vector<std::pair<const void*, const void*>> pending_;
  Ticket done_ = 0;
};

class CopyingDevice final : public ImaginedDevice {
 public:
  CopyingDevice(Device& real, bool late) : ImaginedDevice(real), late_(late) {}
  std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<Copies>(contents, late_, copies);
  }
  Contents contents;
  int64_t copies = 0;

 private:
  bool late_;
};

TEST(InputOffload, InputsAreThereWhenTheyAreRead) {
  const std::unique_ptr<Device> cpu = make_cpu_device();
  for (const bool late : {false, true}) {
    for (int64_t units = 2; units <= 9; ++units) {
      CopyingDevice device(*cpu, late);
      Arena arena(device, kBoundless, kBoundless);
      InputOffload inputs(units, DType::bf16, {2, 3, 4}, arena);
      const int64_t leaving = std::max<int64_t>(0, units - InputOffload::kSlots);
      const size_t each = round_up(size_t{2 * 3 * 4 * 2}, kArenaAlignment);
      EXPECT_EQ(arena.used().total(), static_cast<size_t>(units - leaving) * each);
      EXPECT_EQ(arena.used().total(MemorySpace::pinned), static_cast<size_t>(leaving) * each);
      constexpr int kMicroSteps = 3;
      for (int m = 0; m < kMicroSteps; ++m) {
        for (int64_t u = 0; u < units; ++u) {
          inputs.begin_write(u);
          device.contents[inputs.slot(u).data] = 100 * m + u;
          EXPECT_EQ(device.contents[inputs.slot(u).data], 100 * m + u);
          inputs.end_read(u);
        }
        for (int64_t u = units; u-- > 0;) {
          inputs.need(u);
          EXPECT_EQ(device.contents[inputs.slot(u).data], 100 * m + u) << units << " units";
        }
      }
      EXPECT_EQ(device.copies, kMicroSteps * 2 * leaving);  // out and in
    }
  }
}

}  // namespace
}  // namespace lathe::testing
