// A stream of work on the GPU, destroyed with the object.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace lathe::cuda {

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  // A stream whose kernels are scheduled before waiting kernels of other streams.
  static Stream urgent() {
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream");
    return Stream(greatest);
  }
  ~Stream() {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  explicit Stream(int priority) {
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority), "stream");
  }

  cudaStream_t stream_ = nullptr;
};

}  // namespace lathe::cuda
