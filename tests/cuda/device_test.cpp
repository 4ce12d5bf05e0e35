// The CUDA device itself: memory, recordings, and refusals.
#include "kernels/device/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/ops.h"

namespace lathe::testing {
namespace {

class CudaDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
    device = make_cuda_device({});
    memory = device->allocate(kCount * sizeof(int32_t));
    numbers = Tensor{memory, DType::int32, {kCount}};
  }
  void TearDown() override {
    if (device) device->release(memory, kCount * sizeof(int32_t));
  }
  std::vector<int32_t> values() {
    std::vector<int32_t> all(kCount);
    device->download(all.data(), numbers);
    return all;
  }

  static constexpr int64_t kCount = 1001;
  std::unique_ptr<Device> device;
  void* memory = nullptr;
  Tensor numbers;
};

TEST_F(CudaDevice, ZeroClearsWhatItIsGiven) {
  std::vector<int32_t> expected(kCount);
  std::iota(expected.begin(), expected.end(), 1);
  device->upload(numbers, expected.data());
  EXPECT_EQ(values(), expected);
  device->zero(numbers.rows(3, 500));
  device->zero(numbers.rows(7, 0));
  std::fill_n(expected.begin() + 3, 500, 0);
  EXPECT_EQ(values(), expected);
}

// The first time runs the body, the second records it.
TEST_F(CudaDevice, RecordingsThatThrowLeaveTheDeviceAsItWas) {
  const auto clear = [this] { device->zero(numbers); };
  const auto clear_and_throw = [&] {
    clear();
    throw CheckError("from the body");
  };
  device->replay(1, clear);
  EXPECT_THROW(device->replay(1, clear_and_throw), CheckError);
  const std::vector<int32_t> ones(kCount, 1), zeros(kCount, 0);
  device->upload(numbers, ones.data());
  EXPECT_EQ(values(), ones);
  for (int i = 0; i < 2; ++i) {
    device->replay(1, clear);
    EXPECT_EQ(values(), zeros);
    device->upload(numbers, ones.data());
  }
}

TEST_F(CudaDevice, RefusesWhatItHasNot) {
  EXPECT_THROW(device->ops(DType::fp64), CheckError);
  EXPECT_THROW(make_cuda_device({.index = cuda_device_count()}), UserError);
  const Ops& ops = device->ops(DType::fp32);
  Tensor halves = numbers;
  halves.dtype = DType::fp32;
  EXPECT_THROW(ops.run(Cast{.destination = halves, .source = numbers}, {}), CheckError);
  EXPECT_THROW(ops.run(Cast{.destination = numbers, .source = halves}, {}), CheckError);
}

}  // namespace
}  // namespace lathe::testing
