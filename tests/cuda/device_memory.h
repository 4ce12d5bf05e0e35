// Memory of the GPU and a stream, for tests of the parts of kernels/cuda.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

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

// Copies and waits: otherwise a copy from unpinned memory may still be in progress when a kernel of
// another stream begins.
inline void copy_and_wait(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  static const Stream stream;
  cuda::check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream), "copy");
  stream.wait();
}

// `count` elements in the device's memory, `offset` elements after an aligned address; T is float
// or bf16. values() copies them to the host. (With CUDA on the CPU, data() is host memory, too;
// tests that run only there use it directly.)
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, size_t offset = 0) : count_(count), offset_(offset) {
    const size_t bytes = (count + offset) * sizeof(T);
    cuda::check_cuda(cudaMalloc(&memory_, bytes + 1), "memory");
    const std::vector<unsigned char> nan(bytes, 0xff);
    copy_and_wait(memory_, nan.data(), bytes, cudaMemcpyHostToDevice);
  }
  explicit DeviceArray(const std::vector<T>& values, size_t offset = 0)
      : DeviceArray(values.size(), offset) {
    copy_and_wait(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(memory_) + offset_; }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    copy_and_wait(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  size_t count_, offset_;
  void* memory_ = nullptr;
};

// uint8, aligned like an operation's workspace.
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
