// A device: memory, copies between it and the host, and what it is called. Implemented by
// kernels/cpu (and kernels/cuda); nothing above kernels/ knows which one it holds.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/device/tensor.h"

namespace lathe {

struct Ops;

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // as printed in the banner
  // Dense peak in FLOP/s for matmuls in this number type, 0 where it is not known: then there is
  // no MFU, rather than a wrong one.
  virtual double peak_flops(DType dtype) const = 0;

  // Zeroed memory aligned to kArenaAlignment. Throws UserError where there is not enough.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;

  // Copies in stream order. upload has read `source` when it returns; download has written
  // `destination` when it returns (so it waits for the work before it).
  virtual void upload(const Tensor& destination, const void* source) = 0;
  virtual void download(void* destination, const Tensor& source) = 0;
  virtual void zero(const Tensor& tensor) = 0;
  virtual void synchronize() = 0;

  // The table of operations (kernels/ops.h) for activations and weights of this number type.
  virtual const Ops& ops(DType dtype) = 0;
};

// The CPU: kernels/cpu. `threads` as OpenMP counts them; 0 takes OpenMP's own choice.
std::unique_ptr<Device> make_cpu_device(int threads = 0);

struct CudaDeviceOptions {
  int index = 0;               // of the GPU, as CUDA counts them
  bool tf32 = false;           // fp32 matrix products may round their inputs to TF32
  bool deterministic = false;  // only matrix products whose sums have a fixed order
  bool autotune = true;        // the fastest plan of each matrix product is found by trying
};

// An NVIDIA GPU: kernels/cuda. Throws a UserError that says why where there is none to be had.
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options = {});
int cuda_device_count();  // GPUs that answer; 0 in a build without CUDA

}  // namespace lathe
