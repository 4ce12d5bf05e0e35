// One rank: a collective is a copy on the device's own stream, so nothing needs ordering.
#include <cstring>

#include "src/comm/collective.h"
#include "src/comm/make_communicator.h"

namespace lathe {

namespace {

class SelfCommunicator final : public CollectiveCommunicator {
 public:
  explicit SelfCommunicator(Device& device) : CollectiveCommunicator(0, 1), device_(device) {}

  CommKind kind() const override { return CommKind::self; }

  void after_device() override {}
  void device_after(Ticket) override {}
  Ticket last() const override { return last_; }
  void wait(Ticket) override { device_.synchronize(); }
  void mark(int number) override {
    device_.mark(number);
    ++last_;
  }

  void exchange(void* all, const void* mine, size_t bytes) override {
    if (bytes > 0 && all != mine) std::memcpy(all, mine, bytes);
  }

 private:
  Ticket call(const Collective& c) override {
    if (c.in != c.out && c.count > 0) {
      device_.copy({c.out, c.dtype, {c.count}}, {const_cast<void*>(c.in), c.dtype, {c.count}});
    }
    return ++last_;
  }

  Device& device_;
  Ticket last_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(Device& device) {
  return std::make_unique<SelfCommunicator>(device);
}

}  // namespace lathe
