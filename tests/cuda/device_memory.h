// Memory of the GPU that the host addresses as well, and a stream, for tests of what kernels/cuda
// is made of.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/device/tensor.h"

namespace lathe::testing {

class Stream {
 public:
  Stream() {
    cuda::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { cuda::check_cuda(cudaStreamSynchronize(stream_), "stream"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// `count` elements, `offset` elements after an aligned address; T is float or bf16. The host may
// look whenever the device is idle.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, size_t offset = 0) : count_(count), offset_(offset) {
    cuda::check_cuda(cudaMallocManaged(&memory_, (count + offset) * sizeof(T) + 1), "memory");
    std::memset(memory_, 0xff, (count + offset) * sizeof(T));  // NaN
  }
  explicit DeviceArray(const std::vector<T>& values, size_t offset = 0)
      : DeviceArray(values.size(), offset) {
    std::copy(values.begin(), values.end(), data());
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(memory_) + offset_; }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }

 private:
  size_t count_, offset_;
  void* memory_ = nullptr;
};

// uint8, aligned as an operation's workspace is.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(bytes) {
    tensor = {memory_.data(), DType::uint8, {static_cast<int64_t>(bytes)}};
  }
  Tensor tensor;

 private:
  DeviceArray<uint8_t> memory_;
};

}  // namespace lathe::testing
