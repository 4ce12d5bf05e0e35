// Ranks under test: a device, tensors on it that the host can fill and read, and the values that
// every rank puts into them.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "src/comm/communicator.h"

namespace lathe::testing {

// For the device that the binary is linked for (device_cpu.cpp, device_cuda.cpp).
std::unique_ptr<Device> make_test_device();

// A communicator as --comm names it, and the seed for the order in which streams run, if it is
// drawn.
struct Variant {
  CommKind kind;
  int seed = 1;
};
std::vector<Variant> variants_under_test();
void set_stream_seed(int seed);
inline void PrintTo(const Variant& variant, std::ostream* out) {
  *out << name_of(variant.kind) << ", seed " << variant.seed;
}

using Bytes = std::vector<std::byte>;

// A flat tensor with its own memory.
class Array {
 public:
  Array(Device& device, DType dtype, int64_t count)
      : device_(device),
        allocated_(std::max<size_t>(1, static_cast<size_t>(count) * size_of(dtype))),
        tensor_{device.allocate(allocated_), dtype, {count}} {}
  Array(Device& device, DType dtype, const Bytes& bytes)
      : Array(device, dtype, static_cast<int64_t>(bytes.size() / size_of(dtype))) {
    if (!bytes.empty()) device.upload(tensor_, bytes.data());
  }
  ~Array() { device_.release(tensor_.data, allocated_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const Tensor& tensor() const { return tensor_; }
  Tensor rows(int64_t first, int64_t count) const { return tensor_.rows(first, count); }
  Bytes bytes() const {
    Bytes result(tensor_.bytes());
    if (!result.empty()) device_.download(result.data(), tensor_);
    return result;
  }

 private:
  Device& device_;
  size_t allocated_;
  Tensor tensor_;
};

// World and communicator of a test.
struct Ranks {
  explicit Ranks(CommKind kind, double timeout_seconds = 60)
      : world(&argc, &argv), device(make_test_device()) {
    CommunicatorOptions options;
    options.kind = kind;
    options.timeout_seconds = timeout_seconds;
    comm = make_communicator(world, *device, options);
  }

  int argc = 1;
  char name[5] = "test";
  char* arguments[2] = {name, nullptr};
  char** argv = arguments;
  World world;
  std::unique_ptr<Device> device;
  std::unique_ptr<Communicator> comm;
};

}  // namespace lathe::testing
