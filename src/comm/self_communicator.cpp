// One rank: a collective is a copy on the device's own stream, so nothing needs ordering.
#include <cstring>

#include "kernels/device/in_order_queue.h"
#include "src/comm/collective.h"
#include "src/comm/make_communicator.h"

namespace lathe {

namespace {

class SelfCommunicator final : public CollectiveCommunicator {
 public:
  explicit SelfCommunicator(Device& device)
      : CollectiveCommunicator({.ranks = {0}}, device, queue_), queue_(device) {}

  CommKind kind() const override { return CommKind::self; }

  void exchange(void* all, const void* mine, size_t bytes) override {
    if (bytes > 0 && all != mine) std::memcpy(all, mine, bytes);
  }

 private:
  Ticket call(const Collective& c) override {
    if (c.in != c.out && c.count > 0) {
      device_.copy({c.out, c.dtype, {c.count}}, {const_cast<void*>(c.in), c.dtype, {c.count}});
    }
    return queue_.put();
  }

  std::unique_ptr<Communicator> make_part(int, int, const RankGroup&) override { return nullptr; }

  InOrderQueue queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(Device& device) {
  return std::make_unique<SelfCommunicator>(device);
}

}  // namespace lathe
