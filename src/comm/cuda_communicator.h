// A communicator whose collectives run on a GPU, in a stream beside the device's.
#pragma once

#include <memory>

#include "kernels/cuda/stream_queue.h"
#include "src/comm/collective.h"
#include "src/comm/world.h"

namespace lathe {

class CudaCommunicator : public CollectiveCommunicator {
 protected:
  // `queue` may be that of other communicators: then their collectives run one at a time.
  CudaCommunicator(const World& world, const RankGroup& ranks, Device& device,
                   std::shared_ptr<cuda::StreamQueue> queue)
      : CollectiveCommunicator(ranks, device, *queue),
        world_(world),
        shared_queue_(std::move(queue)),
        queue_(*shared_queue_) {}

  const World& world_;
  const std::shared_ptr<cuda::StreamQueue> shared_queue_;
  cuda::StreamQueue& queue_;
};

}  // namespace lathe
