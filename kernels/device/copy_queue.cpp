#include "kernels/device/copy_queue.h"

#include "kernels/device/device.h"
#include "kernels/device/in_order_queue.h"

namespace lathe {

namespace {

class InOrderCopies final : public CopyQueue {
 public:
  explicit InOrderCopies(Device& device) : device_(device), queue_(device) {}
  Ticket copy(const Tensor& to, const Tensor& from) override {
    device_.copy(to, from);
    return queue_.put();
  }
  Queue& queue() override { return queue_; }

 private:
  Device& device_;
  InOrderQueue queue_;
};

}  // namespace

std::unique_ptr<CopyQueue> Device::make_copy_queue() {
  return std::make_unique<InOrderCopies>(*this);
}

}  // namespace lathe
