// The stand-in for NCCL, on several ranks: every call computes the right result whatever order the
// streams take on each rank, pairs its messages as NCCL does, and every planted mistake is found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <nccl.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda_on_cpu/random.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "kernels/device/dtype.h"
#include "tests/cuda_on_cpu/planted.h"

namespace lathe::cuda {
namespace {

using cuda_on_cpu::set_seed;
using cuda_on_cpu::take_error;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kSeeds = 10;
constexpr ncclRedOp_t kOps[] = {ncclSum, ncclMax, ncclMin, ncclAvg};

void check_nccl(ncclResult_t result) {
  if (result != ncclSuccess)
    throw CheckError(fmt::format("{}: {}", ncclGetErrorString(result), ncclGetLastError(nullptr)));
}

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}
size_t index(int rank) {
  return static_cast<size_t>(rank);
}

ncclUniqueId shared_id() {
  ncclUniqueId id{};
  if (world_rank() == 0) check_nccl(ncclGetUniqueId(&id));
  MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
  return id;
}
ncclComm_t make_comm(int rank, int ranks) {
  ncclComm_t comm = nullptr;
  check_nccl(ncclCommInitRank(&comm, ranks, shared_id(), rank));
  return comm;
}

// Whether it holds on every rank, and on any.
bool on_all(bool holds) {
  int mine = holds, all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  return all != 0;
}
bool on_any(bool holds) {
  return !on_all(!holds);
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), "malloc");
  return memory;
}

// Values in the device's memory. take() reads them in stream order.
template <typename T>
class Device {
 public:
  explicit Device(size_t count)
      : count_(count), data_(static_cast<T*>(allocate(count * sizeof(T) + 1))) {}
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  T* get() const { return data_; }
  void put(const std::vector<T>& values, cudaStream_t stream) const {
    check_cuda(cudaMemcpyAsync(data_, values.data(), values.size() * sizeof(T),
                               cudaMemcpyHostToDevice, stream),
               "copy");
    check_cuda(cudaStreamSynchronize(stream), "put");
  }
  std::vector<T> take(cudaStream_t stream) const {
    std::vector<T> values(count_);
    check_cuda(
        cudaMemcpyAsync(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost, stream),
        "copy");
    check_cuda(cudaStreamSynchronize(stream), "take");
    return values;
  }

 private:
  size_t count_;
  T* data_;
};

// Two streams and an event; each rank has its own seed. MPI calls synchronize the beginning and end
// of each test.
class NcclTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_GE(ranks_, 2) << "to be run as several ranks: mpirun -n 2 nccl_test";
    seed(0);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    check_cuda(cudaStreamCreateWithFlags(&other_, cudaStreamNonBlocking), "stream");
    check_cuda(cudaEventCreate(&event_), "event");
    comm_ = make_comm(rank_, ranks_);
  }
  void TearDown() override {
    take_error();
    if (ranks_ < 2) return;
    EXPECT_EQ(ncclCommDestroy(comm_), ncclSuccess);
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
    cudaStreamDestroy(other_);
    MPI_Barrier(MPI_COMM_WORLD);
  }
  void seed(uint64_t seed) const { set_seed(seed * 64 + static_cast<uint64_t>(rank_)); }
  void synchronize(cudaStream_t stream) {
    check_cuda(cudaStreamSynchronize(stream), "synchronize");
  }
  // `later` continues when `earlier` has reached this point.
  void after(cudaStream_t later, cudaStream_t earlier) {
    check_cuda(cudaEventRecord(event_, earlier), "record");
    check_cuda(cudaStreamWaitEvent(later, event_, 0), "wait");
  }

  const int rank_ = world_rank(), ranks_ = world_size();
  cudaStream_t stream_ = nullptr, other_ = nullptr;
  cudaEvent_t event_ = nullptr;
  ncclComm_t comm_ = nullptr;
};

// ---- Every collective and type against plain code.

template <typename T>
constexpr ncclDataType_t type_of() {
  if constexpr (std::is_same_v<T, float>) return ncclFloat32;
  if constexpr (std::is_same_v<T, double>) return ncclFloat64;
  if constexpr (std::is_same_v<T, bf16>) return ncclBfloat16;
  if constexpr (std::is_same_v<T, int32_t>) return ncclInt32;
  if constexpr (std::is_same_v<T, int64_t>) return ncclInt64;
  if constexpr (std::is_same_v<T, uint8_t>) return ncclUint8;
}

// The values that a rank sends: their sums are rounded, and depend on their order.
template <typename T>
std::vector<T> values_of(int rank, size_t count, uint64_t seed) {
  cuda_on_cpu::Random random(1000 * seed + static_cast<uint64_t>(rank));
  std::vector<T> values(count);
  for (T& value : values) {
    const auto bits = static_cast<int64_t>(random.next());
    if constexpr (std::is_integral_v<T>) {
      value = static_cast<T>(bits >> 3);  // sums wrap in the narrow types
    } else {
      value = T(static_cast<float>(static_cast<double>(bits) * 0x1p-61));
    }
  }
  return values;
}

template <typename T>
T plain_reduction(const std::vector<T>& x, ncclRedOp_t op) {
  const auto ranks = static_cast<T>(static_cast<float>(x.size()));
  T y = x[0];
  if (op == ncclMax) return *std::max_element(x.begin(), x.end());
  if (op == ncclMin) return *std::min_element(x.begin(), x.end());
  if constexpr (std::is_integral_v<T>) {
    uint64_t sum = 0;
    for (T value : x) sum += static_cast<uint64_t>(value);
    y = static_cast<T>(sum);
    return op == ncclAvg ? static_cast<T>(y / ranks) : y;
  } else {
    const T factor = op == ncclAvg ? T(1 / static_cast<double>(x.size())) : T(1);
    y = T(x[0] * factor);
    for (size_t r = 1; r < x.size(); ++r) y = T(y + T(x[r] * factor));
    return y;
  }
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
class NcclCalls : public NcclTest {
 protected:
  static constexpr ncclDataType_t kType = type_of<T>();
  static constexpr size_t kCounts[] = {1, 7, 300};
  // Per rank: `count` values.
  std::vector<std::vector<T>> inputs(size_t count, uint64_t seed) const {
    std::vector<std::vector<T>> all;
    for (int rank = 0; rank < ranks_; ++rank) all.push_back(values_of<T>(rank, count, seed));
    return all;
  }
  static std::vector<T> reduced(const std::vector<std::vector<T>>& inputs, ncclRedOp_t op) {
    std::vector<T> result;
    for (size_t i = 0; i < inputs[0].size(); ++i) {
      std::vector<T> column;
      for (const auto& input : inputs) column.push_back(input[i]);
      result.push_back(plain_reduction(column, op));
    }
    return result;
  }
  // For every seed and every count.
  void for_each_case(const std::function<void(size_t count, uint64_t seed)>& run) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      for (size_t count : kCounts) {
        SCOPED_TRACE(fmt::format("seed {}, count {}", seed, count));
        this->seed(seed);
        run(count, seed);
      }
    }
  }
};

using Types = ::testing::Types<float, double, bf16, int32_t, int64_t, uint8_t>;
TYPED_TEST_SUITE(NcclCalls, Types);

TYPED_TEST(NcclCalls, AllReduce) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const auto inputs = this->inputs(count, seed);
    const Device<TypeParam> x(count), y(count);
    for (ncclRedOp_t op : kOps) {
      x.put(inputs[index(this->rank_)], this->stream_);
      check_nccl(
          ncclAllReduce(x.get(), y.get(), count, this->kType, op, this->comm_, this->stream_));
      EXPECT_TRUE(same_bits(y.take(this->stream_), this->reduced(inputs, op)));
      EXPECT_TRUE(same_bits(x.take(this->stream_), inputs[index(this->rank_)]));
      check_nccl(
          ncclAllReduce(x.get(), x.get(), count, this->kType, op, this->comm_, this->stream_));
      EXPECT_TRUE(same_bits(x.take(this->stream_), this->reduced(inputs, op)));
    }
  });
}

TYPED_TEST(NcclCalls, ReduceScatter) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const size_t all = count * index(this->ranks_), offset = count * index(this->rank_);
    const auto inputs = this->inputs(all, seed);
    const Device<TypeParam> x(all), y(count);
    for (ncclRedOp_t op : kOps) {
      const auto sums = this->reduced(inputs, op);
      const std::vector<TypeParam> mine(sums.begin() + static_cast<long>(offset),
                                        sums.begin() + static_cast<long>(offset + count));
      x.put(inputs[index(this->rank_)], this->stream_);
      check_nccl(
          ncclReduceScatter(x.get(), y.get(), count, this->kType, op, this->comm_, this->stream_));
      EXPECT_TRUE(same_bits(y.take(this->stream_), mine));
      check_nccl(ncclReduceScatter(x.get(), x.get() + offset, count, this->kType, op, this->comm_,
                                   this->stream_));
      auto expected = inputs[index(this->rank_)];
      std::copy(mine.begin(), mine.end(), expected.begin() + static_cast<long>(offset));
      EXPECT_TRUE(same_bits(x.take(this->stream_), expected));
    }
  });
}

TYPED_TEST(NcclCalls, AllGather) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const size_t all = count * index(this->ranks_), offset = count * index(this->rank_);
    const auto inputs = this->inputs(count, seed);
    std::vector<TypeParam> expected;
    for (const auto& input : inputs) expected.insert(expected.end(), input.begin(), input.end());
    const Device<TypeParam> x(count), y(all), z(all);
    x.put(inputs[index(this->rank_)], this->stream_);
    check_nccl(ncclAllGather(x.get(), y.get(), count, this->kType, this->comm_, this->stream_));
    EXPECT_TRUE(same_bits(y.take(this->stream_), expected));
    std::vector<TypeParam> own(all);
    std::copy_n(inputs[index(this->rank_)].begin(), count, own.begin() + static_cast<long>(offset));
    z.put(own, this->stream_);
    check_nccl(
        ncclAllGather(z.get() + offset, z.get(), count, this->kType, this->comm_, this->stream_));
    EXPECT_TRUE(same_bits(z.take(this->stream_), expected));
  });
}

TYPED_TEST(NcclCalls, Broadcast) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const auto inputs = this->inputs(count, seed);
    const Device<TypeParam> x(count), y(count);
    for (int root = 0; root < this->ranks_; ++root) {
      x.put(inputs[index(this->rank_)], this->stream_);
      check_nccl(
          ncclBroadcast(x.get(), y.get(), count, this->kType, root, this->comm_, this->stream_));
      EXPECT_TRUE(same_bits(y.take(this->stream_), inputs[index(root)]));
      EXPECT_TRUE(same_bits(x.take(this->stream_), inputs[index(this->rank_)]));
      check_nccl(
          ncclBroadcast(x.get(), x.get(), count, this->kType, root, this->comm_, this->stream_));
      EXPECT_TRUE(same_bits(x.take(this->stream_), inputs[index(root)]));
    }
  });
}

TYPED_TEST(NcclCalls, Reduce) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const auto inputs = this->inputs(count, seed);
    const std::vector<TypeParam> untouched(count, TypeParam(42));
    const Device<TypeParam> x(count), y(count);
    x.put(inputs[index(this->rank_)], this->stream_);
    for (int root = 0; root < this->ranks_; ++root) {
      for (ncclRedOp_t op : kOps) {
        y.put(untouched, this->stream_);
        check_nccl(
            ncclReduce(x.get(), y.get(), count, this->kType, op, root, this->comm_, this->stream_));
        EXPECT_TRUE(same_bits(y.take(this->stream_),
                              root == this->rank_ ? this->reduced(inputs, op) : untouched));
      }
    }
    check_nccl(ncclReduce(x.get(), this->rank_ == 0 ? x.get() : nullptr, count, this->kType,
                          ncclSum, 0, this->comm_, this->stream_));
    EXPECT_TRUE(same_bits(x.take(this->stream_), this->rank_ == 0 ? this->reduced(inputs, ncclSum)
                                                                  : inputs[index(this->rank_)]));
  });
}

// Around a ring in a group, where nobody need be first; then down a chain, one after another.
TYPED_TEST(NcclCalls, SendAndReceive) {
  this->for_each_case([this](size_t count, uint64_t seed) {
    const auto inputs = this->inputs(count, seed);
    const int next = (this->rank_ + 1) % this->ranks_;
    const int last = (this->rank_ + this->ranks_ - 1) % this->ranks_;
    const Device<TypeParam> x(count), y(count);
    x.put(inputs[index(this->rank_)], this->stream_);
    check_nccl(ncclGroupStart());
    check_nccl(ncclSend(x.get(), count, this->kType, next, this->comm_, this->stream_));
    check_nccl(ncclRecv(y.get(), count, this->kType, last, this->comm_, this->stream_));
    check_nccl(ncclGroupEnd());
    EXPECT_TRUE(same_bits(y.take(this->stream_), inputs[index(last)]));
    if (this->rank_ > 0)
      check_nccl(ncclRecv(x.get(), count, this->kType, last, this->comm_, this->stream_));
    if (this->rank_ + 1 < this->ranks_)
      check_nccl(ncclSend(x.get(), count, this->kType, next, this->comm_, this->stream_));
    EXPECT_TRUE(same_bits(x.take(this->stream_), inputs[0]));
  });
}

TYPED_TEST(NcclCalls, AllReduceIsReduceScatterAndAllGather) {
  const size_t count = 100, all = count * index(this->ranks_), offset = count * index(this->rank_);
  const auto inputs = this->inputs(all, 5);
  const Device<TypeParam> x(all), y(all);
  x.put(inputs[index(this->rank_)], this->stream_);
  check_nccl(
      ncclAllReduce(x.get(), y.get(), all, this->kType, ncclAvg, this->comm_, this->stream_));
  check_nccl(ncclReduceScatter(x.get(), x.get() + offset, count, this->kType, ncclAvg, this->comm_,
                               this->stream_));
  check_nccl(
      ncclAllGather(x.get() + offset, x.get(), count, this->kType, this->comm_, this->stream_));
  EXPECT_TRUE(same_bits(x.take(this->stream_), y.take(this->stream_)));
}

TEST_F(NcclTest, MaximumAndMinimumPassOverNaN) {
  const Device<float> x(2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  x.put({rank_ == 0 ? nan : 1.0f, rank_ == 0 ? 2.0f : nan}, stream_);
  check_nccl(ncclAllReduce(x.get(), x.get(), 2, ncclFloat32, ncclMax, comm_, stream_));
  EXPECT_EQ(x.take(stream_), (std::vector<float>{1.0f, 2.0f}));
}

TEST_F(NcclTest, MovesMegabytesAndNothing) {
  const size_t count = 3 << 20;
  const Device<float> x(count);
  x.put(std::vector<float>(count, static_cast<float>(rank_ + 1)), stream_);
  check_nccl(ncclAllReduce(x.get(), x.get(), 0, ncclFloat32, ncclSum, comm_, stream_));
  check_nccl(ncclAllReduce(nullptr, nullptr, 0, ncclFloat32, ncclSum, comm_, stream_));
  check_nccl(ncclAllReduce(x.get(), x.get(), count, ncclFloat32, ncclSum, comm_, stream_));
  const auto sum = static_cast<float>(ranks_ * (ranks_ + 1) / 2);
  EXPECT_EQ(x.take(stream_), std::vector<float>(count, sum));
}

// ---- Communicators.

TEST_F(NcclTest, KnowsItsRanks) {
  int version = 0, count = 0, rank = -1;
  check_nccl(ncclGetVersion(&version));
  EXPECT_EQ(version, NCCL_VERSION_CODE);
  // In an order other than MPI's.
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t turned = nullptr;
  check_nccl(ncclCommInitRankConfig(&turned, ranks_, shared_id(), ranks_ - 1 - rank_, &config));
  check_nccl(ncclCommCount(turned, &count));
  check_nccl(ncclCommUserRank(turned, &rank));
  EXPECT_EQ(count, ranks_);
  EXPECT_EQ(rank, ranks_ - 1 - rank_);
  const Device<int32_t> x(1), y(index(ranks_));
  x.put({rank_}, stream_);
  check_nccl(ncclAllGather(x.get(), y.get(), 1, ncclInt32, turned, stream_));
  std::vector<int32_t> expected(index(ranks_));
  std::iota(expected.rbegin(), expected.rend(), 0);
  EXPECT_EQ(y.take(stream_), expected);
  EXPECT_EQ(ncclCommDestroy(turned), ncclSuccess);
}

// Two communicators of disjoint ranks, found by their ids, at the same time; one of them has a
// single rank. Ranks in none continue.
TEST_F(NcclTest, SmallerGroupsFindEachOther) {
  ncclUniqueId ids[2] = {shared_id(), shared_id()};
  const int part = rank_ % 2, size = (ranks_ + 1 - part) / 2;
  ncclComm_t comm = nullptr;
  check_nccl(ncclCommInitRank(&comm, size, ids[part], rank_ / 2));
  const Device<int32_t> x(1);
  x.put({rank_ + 1}, stream_);
  check_nccl(ncclAllReduce(x.get(), x.get(), 1, ncclInt32, ncclSum, comm, stream_));
  int32_t sum = 0;
  for (int rank = part; rank < ranks_; rank += 2) sum += rank + 1;
  EXPECT_EQ(x.take(stream_), std::vector<int32_t>{sum});
  EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);

  const ncclUniqueId id = shared_id();
  if (rank_ == 1) return;
  check_nccl(ncclCommInitRank(&comm, ranks_ - 1, id, rank_ == 0 ? 0 : rank_ - 1));
  EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
}

TEST_F(NcclTest, Splits) {
  ncclComm_t even_odd = nullptr, last = nullptr;
  check_nccl(ncclCommSplit(comm_, rank_ % 2, -rank_, &even_odd, nullptr));
  check_nccl(ncclCommSplit(comm_, rank_ == ranks_ - 1 ? 7 : NCCL_SPLIT_NOCOLOR, 0, &last, nullptr));
  EXPECT_EQ(last != nullptr, rank_ == ranks_ - 1);
  int count = 0, rank = -1;
  check_nccl(ncclCommCount(even_odd, &count));
  check_nccl(ncclCommUserRank(even_odd, &rank));
  EXPECT_EQ(count, (ranks_ + 1 - rank_ % 2) / 2);
  EXPECT_EQ(rank, count - 1 - rank_ / 2);  // by key, which is reversed
  const Device<int32_t> x(1);
  x.put({rank_}, stream_);
  check_nccl(ncclBroadcast(x.get(), x.get(), 1, ncclInt32, 0, even_odd, stream_));
  EXPECT_EQ(x.take(stream_), std::vector<int32_t>{2 * (count - 1) + rank_ % 2});
  EXPECT_EQ(ncclCommDestroy(even_odd), ncclSuccess);
  if (last) check_nccl(ncclCommDestroy(last));
}

TEST_F(NcclTest, RefusesRanksThatCannotBe) {
  ncclComm_t comm = nullptr;
  EXPECT_EQ(ncclCommInitRank(&comm, ranks_ + 1, shared_id(), rank_), ncclInvalidArgument);
  EXPECT_THAT(ncclGetLastError(nullptr), HasSubstr("mpirun started"));
  EXPECT_EQ(ncclCommInitRank(&comm, ranks_, shared_id(), ranks_), ncclInvalidArgument);
  EXPECT_EQ(ncclCommInitRank(&comm, ranks_, shared_id(), 0), ncclInvalidArgument);
  EXPECT_THAT(ncclGetLastError(nullptr), HasSubstr("exists twice"));
  if (ranks_ == 3) {  // the other two may find each other first
    const ncclResult_t result = ncclCommInitRank(&comm, rank_ == 0 ? 3 : 2, shared_id(), rank_ % 2);
    EXPECT_TRUE(result == ncclInvalidArgument || rank_ > 0);
    if (result == ncclSuccess) check_nccl(ncclCommAbort(comm));
  }
  EXPECT_EQ(ncclCommInitRank(&comm, ranks_, ncclUniqueId{}, rank_), ncclInvalidArgument);
  ncclConfig_t config{};
  EXPECT_EQ(ncclCommInitRankConfig(&comm, ranks_, shared_id(), rank_, &config),
            ncclInvalidArgument);
  config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  EXPECT_EQ(ncclCommInitRankConfig(&comm, ranks_, shared_id(), rank_, &config), ncclInvalidUsage);
}

TEST_F(NcclTest, AnIdServesOnce) {
  const ncclUniqueId id = shared_id();
  ncclComm_t comm = nullptr, again = nullptr;
  check_nccl(ncclCommInitRank(&comm, ranks_, id, rank_));
  EXPECT_EQ(ncclCommInitRank(&again, ranks_, id, rank_), ncclInvalidUsage);
  EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
  EXPECT_EQ(ncclCommDestroy(comm), ncclInvalidArgument);
}

// ---- Refusals.

TEST_F(NcclTest, RefusesMemoryThatIsNotTheDevices) {
  std::vector<float> host(8);
  void* pinned = nullptr;
  check_cuda(cudaHostAlloc(&pinned, 32, 0), "pinned");
  const Device<float> x(8);
  for (const void* memory :
       {static_cast<void*>(host.data()), pinned, static_cast<void*>(nullptr)}) {
    EXPECT_EQ(ncclAllReduce(memory, x.get(), 8, ncclFloat32, ncclSum, comm_, stream_),
              ncclInvalidArgument);
    EXPECT_THAT(ncclGetLastError(comm_), HasSubstr("send buffer"));
    EXPECT_EQ(ncclRecv(const_cast<void*>(memory), 8, ncclFloat32, 0, comm_, stream_),
              ncclInvalidArgument);
    EXPECT_THAT(ncclGetLastError(comm_), HasSubstr("receive buffer"));
  }
  EXPECT_EQ(ncclAllReduce(x.get(), x.get(), 9, ncclFloat32, ncclSum, comm_, stream_),
            ncclInvalidArgument);
  EXPECT_EQ(ncclAllGather(x.get(), x.get(), 8, ncclFloat32, comm_, stream_), ncclInvalidArgument);
  cudaFreeHost(pinned);
}

TEST_F(NcclTest, RefusesWhatMakesNoSense) {
  const Device<float> x(16);
  const auto all_reduce = [&](ncclDataType_t type, ncclRedOp_t op, size_t offset) {
    return ncclAllReduce(x.get(), reinterpret_cast<std::byte*>(x.get()) + offset, 4, type, op,
                         comm_, stream_);
  };
  EXPECT_EQ(all_reduce(ncclFloat16, ncclSum, 0), ncclInvalidArgument);
  EXPECT_EQ(all_reduce(ncclFloat32, ncclProd, 0), ncclInvalidArgument);
  EXPECT_EQ(all_reduce(ncclFloat32, ncclSum, 4), ncclInvalidArgument);   // overlap
  EXPECT_EQ(all_reduce(ncclFloat32, ncclSum, 18), ncclInvalidArgument);  // not aligned
  EXPECT_EQ(ncclBroadcast(x.get(), x.get(), 4, ncclFloat32, ranks_, comm_, stream_),
            ncclInvalidArgument);
  EXPECT_EQ(ncclBroadcast(x.get(), x.get(), 4, ncclFloat32, -1, comm_, stream_),
            ncclInvalidArgument);
  EXPECT_EQ(ncclSend(x.get(), 4, ncclFloat32, ranks_, comm_, stream_), ncclInvalidArgument);
  EXPECT_EQ(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, nullptr, stream_),
            ncclInvalidArgument);
  EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
  EXPECT_EQ(ncclCommDestroy(nullptr), ncclInvalidArgument);
  EXPECT_EQ(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, comm_, nullptr),
            ncclUnhandledCudaError);
  EXPECT_THAT(take_error(), HasSubstr("default stream"));
}

// Nothing of a group runs if one of its calls is wrong.
TEST_F(NcclTest, RefusesAWholeGroup) {
  const Device<float> x(4);
  x.put({1, 2, 3, 4}, stream_);
  check_nccl(ncclGroupStart());
  check_nccl(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, comm_, stream_));
  EXPECT_EQ(ncclAllReduce(x.get(), nullptr, 4, ncclFloat32, ncclSum, comm_, stream_),
            ncclInvalidArgument);
  EXPECT_EQ(ncclGroupEnd(), ncclInvalidArgument);
  EXPECT_EQ(x.take(stream_), (std::vector<float>{1, 2, 3, 4}));
  check_nccl(ncclGroupStart());
  check_nccl(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, comm_, stream_));
  EXPECT_EQ(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, comm_, other_),
            ncclInvalidUsage);
  EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
}

TEST_F(NcclTest, NamesCallsThatDoNotMatch) {
  const Device<float> x(16);
  x.put(std::vector<float>(16, 1.0f), stream_);
  const auto error = [&] {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
    ncclResult_t asynchronous = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(comm_, &asynchronous));
    EXPECT_EQ(asynchronous, ncclInvalidUsage);
    EXPECT_EQ(ncclAllReduce(x.get(), x.get(), 1, ncclFloat32, ncclSum, comm_, stream_),
              ncclInvalidUsage);
    check_nccl(ncclCommAbort(comm_));
    const std::string said = take_error();
    comm_ = make_comm(rank_, ranks_);
    return said;
  };
  check_nccl(
      ncclAllReduce(x.get(), x.get(), index(rank_ + 4), ncclFloat32, ncclSum, comm_, stream_));
  EXPECT_THAT(
      error(),
      AllOf(HasSubstr("ncclAllReduce of 4 float32 (sum)"),
            HasSubstr(fmt::format("ncclAllReduce of {} float32 (sum)", std::max(rank_, 1) + 4))));
  if (rank_ == 0) {
    check_nccl(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclMax, comm_, stream_));
  } else {
    check_nccl(ncclBroadcast(x.get(), x.get(), 4, ncclFloat32, 0, comm_, stream_));
  }
  EXPECT_THAT(error(), AllOf(HasSubstr("ncclAllReduce of 4 float32 (max)"),
                             HasSubstr("ncclBroadcast of 4 float32")));
  check_nccl(ncclReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, rank_ == 0, comm_, stream_));
  EXPECT_THAT(error(), AllOf(HasSubstr("root or peer 0"), HasSubstr("root or peer 1")));
}

// Without a group each rank sends first, and nobody receives.
TEST_F(NcclTest, NamesSendsThatWaitForEachOther) {
  const Device<float> x(4), y(4);
  x.put({1, 2, 3, 4}, stream_);
  const char* set = std::getenv("LATHE_CUDA_PATIENCE");
  const std::string patience = set ? set : "0";
  setenv("LATHE_CUDA_PATIENCE", "0.2", 1);
  check_nccl(ncclSend(x.get(), 4, ncclFloat32, (rank_ + 1) % ranks_, comm_, stream_));
  check_nccl(ncclRecv(y.get(), 4, ncclFloat32, (rank_ + ranks_ - 1) % ranks_, comm_, stream_));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
  setenv("LATHE_CUDA_PATIENCE", patience.c_str(), 1);
  EXPECT_THAT(take_error(), AllOf(HasSubstr("no progress"), HasSubstr("ncclSend")));
  check_nccl(ncclCommAbort(comm_));
  comm_ = make_comm(rank_, ranks_);
}

TEST_F(NcclTest, AbortForgetsWhatIsQueued) {
  const Device<float> x(4);
  x.put({1, 2, 3, 4}, stream_);
  if (rank_ == 0)  // the others never call it
    check_nccl(ncclAllReduce(x.get(), x.get(), 4, ncclFloat32, ncclSum, comm_, stream_));
  check_nccl(ncclCommAbort(comm_));
  synchronize(stream_);
  comm_ = make_comm(rank_, ranks_);
}

// ---- Streams, groups, graphs.

// Independent collectives on two streams and three communicators. All hosts enqueue them in the
// same order; the streams reach them in different orders on each rank.
TEST_F(NcclTest, PairsCallsInTheHostsOrder) {
  ncclComm_t second = make_comm(rank_, ranks_), part = nullptr;
  check_nccl(ncclCommSplit(comm_, rank_ % 2, rank_, &part, nullptr));
  constexpr size_t kCalls = 24, kCount = 16;
  const Device<int32_t> x(kCalls * kCount);
  for (uint64_t seed = 0; seed < 2 * kSeeds; ++seed) {
    this->seed(seed);
    cuda_on_cpu::Random same_on_all(seed);
    std::vector<int32_t> values(kCalls * kCount), expected;
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i << rank_);
    x.put(values, stream_);
    for (size_t call = 0; call < kCalls; ++call) {
      const uint32_t which = same_on_all.below(3);
      // The streams need not be the same on all ranks.
      cudaStream_t stream = (same_on_all.next() + index(rank_) * seed) % 2 ? stream_ : other_;
      int32_t* const at = x.get() + call * kCount;
      const ncclComm_t comm = which == 0 ? comm_ : which == 1 ? second : part;
      check_nccl(ncclAllReduce(at, at, kCount, ncclInt32, ncclSum, comm, stream));
      int32_t factor = 0;
      for (int rank = 0; rank < ranks_; ++rank)
        if (which < 2 || rank % 2 == rank_ % 2) factor += 1 << rank;
      for (size_t i = 0; i < kCount; ++i)
        expected.push_back(static_cast<int32_t>(call * kCount + i) * factor);
    }
    synchronize(other_);
    EXPECT_EQ(x.take(stream_), expected) << "seed " << seed;
  }
  check_nccl(ncclCommDestroy(part));
  check_nccl(ncclCommDestroy(second));
}

// All to all by sends and receives, in an order that would deadlock without a group, mixed with a
// collective of the same communicator and one of another.
TEST_F(NcclTest, Groups) {
  ncclComm_t second = make_comm(rank_, ranks_);
  const Device<int32_t> x(index(ranks_)), y(index(ranks_)), sum(1), most(1);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    this->seed(seed);
    std::vector<int32_t> sent, expected;
    for (int peer = 0; peer < ranks_; ++peer) {
      sent.push_back(100 * rank_ + peer);
      expected.push_back(100 * peer + rank_);
    }
    x.put(sent, stream_);
    sum.put({rank_ + 1}, stream_);
    most.put({rank_}, stream_);
    check_nccl(ncclGroupStart());
    for (int peer = ranks_ - 1; peer >= 0; --peer)
      check_nccl(ncclSend(x.get() + peer, 1, ncclInt32, peer, comm_, stream_));
    check_nccl(ncclGroupStart());
    check_nccl(ncclAllReduce(sum.get(), sum.get(), 1, ncclInt32, ncclSum, comm_, stream_));
    check_nccl(ncclAllReduce(most.get(), most.get(), 1, ncclInt32, ncclMax, second, other_));
    check_nccl(ncclGroupEnd());
    for (int peer = 0; peer < ranks_; ++peer)
      check_nccl(ncclRecv(y.get() + peer, 1, ncclInt32, peer, comm_, stream_));
    EXPECT_EQ(sum.take(stream_), std::vector<int32_t>{rank_ + 1});  // nothing has begun
    check_nccl(ncclGroupEnd());
    EXPECT_EQ(y.take(stream_), expected);
    EXPECT_EQ(sum.take(stream_), std::vector<int32_t>{ranks_ * (ranks_ + 1) / 2});
    EXPECT_EQ(most.take(other_), std::vector<int32_t>{ranks_ - 1});
  }
  check_nccl(ncclCommDestroy(second));
}

// From its beginning to its end a call may write all of the receive buffer, except what it sends
// from there; a read meanwhile returns poison.
TEST_F(NcclTest, PoisonsTheReceiveBufferWhileItRuns) {
  const Device<float> x(index(ranks_)), y(index(ranks_));
  x.put(std::vector<float>(index(ranks_), 1.0f), stream_);
  y.put(std::vector<float>(index(ranks_), 2.0f), stream_);
  check_nccl(ncclAllReduce(x.get(), x.get(), index(ranks_), ncclFloat32, ncclSum, comm_, stream_));
  synchronize(stream_);
  const auto begin = [&] {
    check_nccl(ncclAllReduce(x.get(), x.get(), 1, ncclFloat32, ncclSum, comm_, stream_));
    check_nccl(ncclAllGather(y.get() + rank_, y.get(), 1, ncclFloat32, comm_, other_));
    check_nccl(ncclBroadcast(x.get() + 1, x.get() + 1, 1, ncclFloat32, 0, comm_, other_));
  };
  if (rank_ == 0) {
    begin();
    for (int i = 0; i < 100; ++i) cuda_on_cpu::make_progress();
    EXPECT_TRUE(std::isnan(x.get()[0]));
    EXPECT_EQ(x.get()[1], static_cast<float>(ranks_));
    EXPECT_EQ(y.get()[0], 2.0f);
    EXPECT_TRUE(std::isnan(y.get()[1]));
  }
  MPI_Barrier(MPI_COMM_WORLD);
  if (rank_ > 0) begin();
  synchronize(other_);
  EXPECT_EQ(x.take(stream_)[0], static_cast<float>(ranks_ * ranks_));
  EXPECT_EQ(y.take(stream_), std::vector<float>(index(ranks_), 2.0f));
}

// A graph of two streams with two collectives that no edge orders, replayed among eager ones.
TEST_F(NcclTest, ReplaysInGraphs) {
  const Device<float> x(256), y(256), z(256), eager(256);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
  launch_copy(y.get(), x.get(), stream_);
  after(other_, stream_);
  check_nccl(ncclAllReduce(y.get(), y.get(), 256, ncclFloat32, ncclSum, comm_, stream_));
  check_nccl(ncclAllReduce(x.get(), z.get(), 256, ncclFloat32, ncclMax, comm_, other_));
  after(stream_, other_);
  check_cuda(cudaStreamEndCapture(stream_, &graph), "end");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  check_cuda(cudaGraphDestroy(graph), "destroy");
  const auto sum = [this](float value) {
    return static_cast<float>(ranks_) * value + static_cast<float>(ranks_ * (ranks_ - 1) / 2);
  };
  for (uint64_t seed = 0; seed < 2 * kSeeds; ++seed) {
    this->seed(seed);
    const float value = static_cast<float>(10 * seed);
    launch_fill(x.get(), 256, value + static_cast<float>(rank_), stream_);
    launch_fill(eager.get(), 256, value + static_cast<float>(rank_), other_);
    check_nccl(ncclAllReduce(eager.get(), eager.get(), 256, ncclFloat32, ncclSum, comm_, other_));
    check_cuda(cudaGraphLaunch(executable, stream_), "launch");
    check_nccl(ncclAllReduce(eager.get(), eager.get(), 256, ncclFloat32, ncclMin, comm_, other_));
    EXPECT_EQ(y.take(stream_), std::vector<float>(256, sum(value)));
    EXPECT_EQ(z.take(stream_), std::vector<float>(256, value + static_cast<float>(ranks_ - 1)));
    EXPECT_EQ(eager.take(other_), std::vector<float>(256, sum(value)));
  }
  // It cannot be destroyed before the graph.
  EXPECT_EQ(ncclCommDestroy(comm_), ncclInvalidUsage);
  EXPECT_THAT(take_error(), HasSubstr("ncclCommDestroy waits forever"));
  EXPECT_EQ(ncclCommAbort(comm_), ncclInvalidUsage);
  EXPECT_THAT(take_error(), HasSubstr("ncclCommAbort waits forever"));
  cudaGraphExecDestroy(executable);
  check_nccl(ncclCommDestroy(comm_));
  comm_ = make_comm(rank_, ranks_);
}

// ---- Waits of the host.

// One rank waits in MPI for the others, whose streams wait for a collective of its stream.
TEST_F(NcclTest, TheDeviceGoesOnWhileTheHostWaitsInMpi) {
  std::vector<int> all(index(ranks_)), counts(index(ranks_), 1), offsets(index(ranks_));
  std::iota(offsets.begin(), offsets.end(), 0);
  const int next = (rank_ + 1) % ranks_, last = (rank_ + ranks_ - 1) % ranks_;
  int mine = rank_, got = -1;
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Request requests[2];
  const auto begin = [&] {
    MPI_Irecv(&got, 1, MPI_INT, last, 0, MPI_COMM_WORLD, &requests[0]);
    MPI_Isend(&mine, 1, MPI_INT, next, 0, MPI_COMM_WORLD, &requests[1]);
  };
  const std::function<void()> calls[] = {
      [&] { MPI_Barrier(MPI_COMM_WORLD); },
      [&] { MPI_Bcast(&got, 1, MPI_INT, ranks_ - 1, MPI_COMM_WORLD); },
      [&] { MPI_Allreduce(&mine, &got, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD); },
      [&] { MPI_Reduce(&mine, &got, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD); },
      [&] { MPI_Allgather(&mine, 1, MPI_INT, all.data(), 1, MPI_INT, MPI_COMM_WORLD); },
      [&] {
        MPI_Allgatherv(&mine, 1, MPI_INT, all.data(), counts.data(), offsets.data(), MPI_INT,
                       MPI_COMM_WORLD);
      },
      [&] { MPI_Gather(&mine, 1, MPI_INT, all.data(), 1, MPI_INT, 0, MPI_COMM_WORLD); },
      [&] {
        MPI_Gatherv(&mine, 1, MPI_INT, all.data(), counts.data(), offsets.data(), MPI_INT, 0,
                    MPI_COMM_WORLD);
      },
      [&] { MPI_Scatter(all.data(), 1, MPI_INT, &got, 1, MPI_INT, 0, MPI_COMM_WORLD); },
      [&] { MPI_Alltoall(all.data(), 1, MPI_INT, counts.data(), 1, MPI_INT, MPI_COMM_WORLD); },
      [&] {
        MPI_Sendrecv(&mine, 1, MPI_INT, next, 0, &got, 1, MPI_INT, last, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        EXPECT_EQ(got, last);
      },
      [&] {
        if (rank_ == 0) {
          for (int peer = 1; peer < ranks_; ++peer) {
            MPI_Recv(&got, 1, MPI_INT, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            EXPECT_EQ(got, peer);
          }
        } else {
          MPI_Ssend(&mine, 1, MPI_INT, 0, 0, MPI_COMM_WORLD);
        }
      },
      [&] {
        if (rank_ == 0) {
          for (int peer = 1; peer < ranks_; ++peer)
            MPI_Ssend(&mine, 1, MPI_INT, peer, 0, MPI_COMM_WORLD);
        } else {
          MPI_Status status;
          MPI_Probe(0, 0, MPI_COMM_WORLD, &status);
          MPI_Recv(&got, 1, MPI_INT, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
      },
      [&] {
        begin();
        MPI_Wait(&requests[0], MPI_STATUS_IGNORE);
        MPI_Wait(&requests[1], MPI_STATUS_IGNORE);
        EXPECT_EQ(got, last);
      },
      [&] {
        begin();
        MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
        EXPECT_EQ(got, last);
      },
      [&] {
        begin();
        for (int done = 0; !done;) MPI_Testall(2, requests, &done, MPI_STATUSES_IGNORE);
        EXPECT_EQ(got, last);
      },
      [&] {
        begin();
        int which = -1;
        MPI_Waitany(2, requests, &which, MPI_STATUS_IGNORE);
        MPI_Waitany(2, requests, &which, MPI_STATUS_IGNORE);
        EXPECT_EQ(got, last);
      },
      [&] {
        MPI_Comm_dup(MPI_COMM_WORLD, &comm);
        MPI_Comm_free(&comm);
      },
      [&] {
        MPI_Comm_split(MPI_COMM_WORLD, rank_, 0, &comm);
        MPI_Comm_free(&comm);
      },
      [&] { EXPECT_EQ(ncclCommDestroy(make_comm(rank_, ranks_)), ncclSuccess); },
      [&] {
        ncclComm_t part = nullptr;
        check_nccl(ncclCommSplit(comm_, 0, rank_, &part, nullptr));
        check_nccl(ncclCommDestroy(part));
      },
  };
  const Device<int32_t> x(1);
  uint64_t seed = 0;
  for (const auto& call : calls) {
    for (int first = 0; first < ranks_; ++first) {
      SCOPED_TRACE(fmt::format("call {}, rank {}", seed / index(ranks_), first));
      this->seed(++seed);
      x.put({1}, stream_);
      check_nccl(ncclAllReduce(x.get(), x.get(), 1, ncclInt32, ncclSum, comm_, stream_));
      if (rank_ != first) synchronize(stream_);
      call();
      EXPECT_EQ(x.take(stream_), std::vector<int32_t>{ranks_});
    }
  }
}

TEST_F(NcclTest, HostCallsComputeWhatMpiDoes) {
  double mine = std::sin(rank_ + 1.0), wrapped = 0, direct = 0;
  MPI_Allreduce(&mine, &wrapped, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  PMPI_Allreduce(&mine, &direct, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  EXPECT_EQ(wrapped, direct);
  std::vector<int> all(index(ranks_)), expected(index(ranks_));
  std::iota(expected.begin(), expected.end(), 0);
  MPI_Allgather(&rank_, 1, MPI_INT, all.data(), 1, MPI_INT, MPI_COMM_WORLD);
  EXPECT_EQ(all, expected);
}

// A rank that only queries, or frees memory, does not block the work of other ranks.
TEST_F(NcclTest, QueriesAndFreesGoOn) {
  const Device<int32_t> x(1);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    this->seed(seed);
    x.put({1}, stream_);
    check_nccl(ncclAllReduce(x.get(), x.get(), 1, ncclInt32, ncclSum, comm_, stream_));
    if (rank_ == 0) {
      while (cudaStreamQuery(stream_) == cudaErrorNotReady) continue;
    } else {
      cudaFree(allocate(16));
    }
    EXPECT_EQ(x.take(stream_), std::vector<int32_t>{ranks_});
  }
}

// ---- Mistakes. Each is made with many seeds; without the mistake, the result is always right.

class NcclMistakes : public NcclTest {
 protected:
  static constexpr uint64_t kTries = 20;
  static constexpr int64_t kCount = 256;
  // Runs `attempt` with and without the mistake. Without it the result is `value` for all seeds and
  // ranks; with it some rank gets another result for some seed.
  void expect_found(const std::function<std::vector<float>(bool mistake, float value)>& attempt) {
    int found = 0;
    for (uint64_t seed = 0; seed < kTries; ++seed) {
      for (bool mistake : {false, true}) {
        this->seed(seed);
        const float value = static_cast<float>(100 * (seed + 1));
        const auto result = attempt(mistake, value);
        const bool right = result == std::vector<float>(kCount, value * static_cast<float>(ranks_));
        EXPECT_TRUE(right || mistake) << "seed " << seed;
        check_cuda(cudaDeviceSynchronize(), "synchronize");
        const bool noticed = on_any(!right);
        found += mistake && noticed;
      }
    }
    EXPECT_GT(found, 0);
    RecordProperty("found", found);
  }
  const Device<float> x_{kCount}, y_{kCount};
};

TEST_F(NcclMistakes, NoWaitForTheKernelThatMakesTheData) {
  expect_found([this](bool mistake, float value) {
    launch_fill(x_.get(), kCount, -1.0f, stream_);
    synchronize(stream_);
    launch_fill(x_.get(), kCount, value, stream_);
    if (!mistake) after(other_, stream_);
    check_nccl(ncclAllReduce(x_.get(), y_.get(), kCount, ncclFloat32, ncclSum, comm_, other_));
    return y_.take(other_);
  });
}

TEST_F(NcclMistakes, NoWaitForTheResult) {
  expect_found([this](bool mistake, float value) {
    launch_fill(x_.get(), kCount, value, other_);
    check_nccl(ncclAllReduce(x_.get(), x_.get(), kCount, ncclFloat32, ncclSum, comm_, other_));
    if (!mistake) after(stream_, other_);
    launch_copy(y_.get(), x_.get(), stream_);
    return y_.take(stream_);
  });
}

TEST_F(NcclMistakes, SendBufferWrittenTooEarly) {
  expect_found([this](bool mistake, float value) {
    launch_fill(x_.get(), kCount, value, stream_);
    after(other_, stream_);
    check_nccl(ncclAllReduce(x_.get(), y_.get(), kCount, ncclFloat32, ncclSum, comm_, other_));
    if (!mistake) after(stream_, other_);
    launch_fill(x_.get(), kCount, -1.0f, stream_);  // of the next step
    return y_.take(other_);
  });
}

TEST_F(NcclMistakes, SendBufferWrittenByTheHost) {
  void* managed = nullptr;
  check_cuda(cudaMallocManaged(&managed, kCount * sizeof(float), cudaMemAttachGlobal), "managed");
  auto* values = static_cast<float*>(managed);
  expect_found([&](bool mistake, float value) {
    std::fill_n(values, kCount, value);
    check_nccl(ncclAllReduce(values, y_.get(), kCount, ncclFloat32, ncclSum, comm_, stream_));
    if (!mistake) synchronize(stream_);
    std::fill_n(values, kCount, -1.0f);
    return y_.take(stream_);
  });
  cudaFree(managed);
}

// A kernel enqueued earlier on another stream still uses the receive buffer.
TEST_F(NcclMistakes, ReceiveBufferUsedMeanwhile) {
  const Device<float> old(kCount);
  expect_found([&](bool mistake, float value) {
    launch_fill(x_.get(), kCount, 1.0f, stream_);
    launch_fill(y_.get(), kCount, value * static_cast<float>(ranks_), stream_);
    after(other_, stream_);
    launch_fill(old.get(), kCount, 0.0f, stream_);
    launch_copy(old.get(), y_.get(), stream_);
    if (!mistake) after(other_, stream_);
    check_nccl(ncclAllReduce(x_.get(), y_.get(), kCount, ncclFloat32, ncclSum, comm_, other_));
    return old.take(stream_);
  });
}

}  // namespace
}  // namespace lathe::cuda
