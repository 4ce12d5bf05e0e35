// A communicator whose collectives run on a GPU, in a stream of their own (CudaLine).
#pragma once

#include "src/comm/collective.h"
#include "src/comm/cuda_line.h"

namespace lathe {

class CudaCommunicator : public CollectiveCommunicator {
 public:
  void after_device() final { line_.after_device(); }
  void device_after(Ticket ticket) final { line_.device_after(ticket); }
  Ticket last() const final { return line_.last(); }
  void mark(int number) final {
    line_.begin();
    device_.mark_on(line_.stream(), number);
    line_.end();
  }

 protected:
  CudaCommunicator(const World& world, Device& device)
      : CollectiveCommunicator(world.rank(), world.size()),
        world_(world),
        device_(device),
        line_(device) {}

  const World& world_;
  Device& device_;
  CudaLine line_;
};

}  // namespace lathe
