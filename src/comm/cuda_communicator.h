// A communicator whose collectives run on a GPU, in a stream of their own.
#pragma once

#include <functional>

#include "kernels/cuda/stream_queue.h"
#include "src/comm/collective.h"
#include "src/comm/world.h"

namespace lathe {

class CudaCommunicator : public CollectiveCommunicator {
 protected:
  CudaCommunicator(const World& world, Device& device, std::function<void()> while_waiting = {})
      : CollectiveCommunicator(world.rank(), world.size(), queue_),
        world_(world),
        device_(device),
        queue_(device, std::move(while_waiting)) {}

  const World& world_;
  Device& device_;
  cuda::StreamQueue queue_;
};

}  // namespace lathe
