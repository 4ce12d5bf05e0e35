// A queue whose entries are operations of the device: nothing runs beside anything else.
#pragma once

#include "kernels/device/device.h"
#include "kernels/device/queue.h"

namespace lathe {

class InOrderQueue final : public Queue {
 public:
  explicit InOrderQueue(Device& device) : device_(device) {}

  // Counts an entry that the caller has given the device.
  Ticket put() { return ++last_; }

  void after_device() override {}
  void device_after(Ticket) override {}
  Ticket last() const override { return last_; }
  void wait(Ticket) override { device_.synchronize(); }
  Ticket mark(int number) override {
    device_.mark(number);
    return put();
  }

 private:
  Device& device_;
  Ticket last_ = 0;
};

}  // namespace lathe
