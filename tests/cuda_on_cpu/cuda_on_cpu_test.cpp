// The execution model and the lazy streams: they compute what CUDA would, and find every planted
// mistake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "tests/cuda_on_cpu/planted.h"

namespace lathe::cuda {
namespace {

using cuda_on_cpu::set_seed;
using cuda_on_cpu::take_error;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSeeds = 20;

class CudaOnCpu : public ::testing::Test {
 protected:
  void SetUp() override {
    set_seed(1);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    check_cuda(cudaStreamCreateWithFlags(&other_, cudaStreamNonBlocking), "stream");
    check_cuda(cudaEventCreate(&event_), "event");
    x_ = floats(4096), y_ = floats(4096);
    std::vector<float> values(4096);
    std::iota(values.begin(), values.end(), 0.0f);
    check_cuda(cudaMemcpyAsync(x_, values.data(), 4096 * 4, cudaMemcpyHostToDevice, stream_),
               "copy");
    check_cuda(cudaStreamSynchronize(stream_), "upload");
  }
  void TearDown() override {
    take_error();
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
    cudaStreamDestroy(other_);
    cudaFree(x_);
    cudaFree(y_);
  }
  static float* floats(size_t count) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, count * sizeof(float)), "malloc");
    return static_cast<float*>(memory);
  }
  std::vector<float> result(size_t count) {
    std::vector<float> values(count);
    check_cuda(cudaMemcpyAsync(values.data(), y_, count * 4, cudaMemcpyDeviceToHost, stream_),
               "copy");
    check_cuda(cudaStreamSynchronize(stream_), "download");
    return values;
  }
  bool is_reversed() {
    const std::vector<float> values = result(256);
    for (size_t i = 0; i < 256; ++i)
      if (values[i] != static_cast<float>(255 - i)) return false;
    return true;
  }
  // The device's error after the work in the stream.
  std::string error_of_work() {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
    return take_error();
  }

  cudaStream_t stream_ = nullptr, other_ = nullptr;
  cudaEvent_t event_ = nullptr;
  float *x_ = nullptr, *y_ = nullptr;
};

TEST_F(CudaOnCpu, SumsOverBlocks) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    launch_block_sum(y_, x_, 16, stream_);
    const std::vector<float> sums = result(16);
    for (size_t b = 0; b < 16; ++b)
      EXPECT_EQ(sums[b], static_cast<float>(256 * 256 * b + 255 * 128)) << b;
  }
}

TEST_F(CudaOnCpu, FindsAMissingBarrier) {
  int wrong = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    launch_reverse(y_, x_, true, 1024, stream_);
    EXPECT_TRUE(is_reversed());
    launch_reverse(y_, x_, false, 1024, stream_);
    wrong += !is_reversed();
  }
  EXPECT_GT(wrong, kSeeds / 2);
}

TEST_F(CudaOnCpu, FindsAMissingWaitForAnAsynchronousCopy) {
  int wrong = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    launch_reverse_async(y_, x_, true, stream_);
    EXPECT_TRUE(is_reversed());
    launch_reverse_async(y_, x_, false, stream_);
    wrong += !is_reversed();
  }
  EXPECT_GT(wrong, kSeeds / 4);
}

TEST_F(CudaOnCpu, FindsWgmmaThatIsReadEarlyOrNotFencedOrNotWaitedFor) {
  const auto product_is_right = [&](WgmmaMistake mistake) {
    launch_product_of_ones(y_, mistake, stream_);
    return result(128) == std::vector<float>(128, 16.0f);
  };
  int wrong = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    EXPECT_TRUE(product_is_right(WgmmaMistake::none));
    wrong += !product_is_right(WgmmaMistake::read_early);
  }
  EXPECT_GT(wrong, kSeeds / 4);
  launch_product_of_ones(y_, WgmmaMistake::no_fence, stream_);
  EXPECT_THAT(error_of_work(),
              AllOf(HasSubstr("product_of_ones"), HasSubstr("without wgmma.fence")));
  launch_product_of_ones(y_, WgmmaMistake::no_wait, stream_);
  EXPECT_THAT(error_of_work(), HasSubstr("ends before its wgmma are complete"));
}

// A GPU would use an address of global memory as one of shared memory, and read or write elsewhere.
TEST_F(CudaOnCpu, NamesGlobalMemoryTakenForShared) {
  launch_matrix_of(x_, stream_);
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("matrix_of"), HasSubstr("ldmatrix"),
                                     HasSubstr("not in shared memory")));
  launch_copy_into(y_, x_, /*from_shared=*/false, stream_);
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("copy_into"), HasSubstr("destination is not")));
  launch_copy_into(y_, x_, /*from_shared=*/true, stream_);
  EXPECT_THAT(error_of_work(), HasSubstr("source is in shared memory"));
}

TEST_F(CudaOnCpu, NamesADivergentBarrier) {
  launch_divergent_barrier(stream_);
  EXPECT_THAT(error_of_work(),
              AllOf(HasSubstr("divergent_barrier"), HasSubstr("waits forever at __syncthreads"),
                    HasSubstr("planted.cu:"), HasSubstr("28 of 128 threads have ended")));
}

TEST_F(CudaOnCpu, NamesTwoBarriersThatAreNotTheSame) {
  launch_two_barriers(stream_);
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("two_barriers"), HasSubstr("different barriers")));
}

TEST_F(CudaOnCpu, NamesADivergentShuffle) {
  launch_divergent_shuffle(y_, stream_);
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("divergent_shuffle"), HasSubstr("thread ("),
                                     HasSubstr("waits forever at __shfl_xor_sync")));
}

#if !defined(__SANITIZE_ADDRESS__)
TEST_F(CudaOnCpu, NamesTooLittleSharedMemory) {
  launch_reverse(y_, x_, true, 1000, stream_);
  EXPECT_THAT(error_of_work(),
              AllOf(HasSubstr("reverse"), HasSubstr("a write after the 1000 bytes")));
}

TEST_F(CudaOnCpu, NamesAWriteOutOfRange) {
  float* small = floats(100);
  launch_fill(small, 101, 1.0f, stream_);
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("fill wrote after"), HasSubstr("400 bytes")));
  cudaFree(small);
}
#else
TEST_F(CudaOnCpu, NamesTooLittleSharedMemory) {
  EXPECT_DEATH(
      {
        launch_reverse(y_, x_, true, 1000, stream_);
        cudaStreamSynchronize(stream_);
      },
      "in kernel .*reverse.*, block \\(0, 0, 0\\), thread \\(25[0-9], 0, 0\\)");
}

TEST_F(CudaOnCpu, NamesAWriteOutOfRange) {
  EXPECT_DEATH(
      {
        launch_fill(floats(100), 101, 1.0f, stream_);
        cudaStreamSynchronize(stream_);
      },
      "in kernel .*fill.*, block \\(0, 0, 0\\), thread \\(100, 0, 0\\)");
}
#endif

TEST_F(CudaOnCpu, RefusesSharedMemoryThatWasNotAllowed) {
  cudaLaunchConfig_t config{};
  EXPECT_THROW(launch_reverse(y_, x_, true, 300 * 1024, stream_), CheckError);
  EXPECT_NO_THROW(launch_reverse(y_, x_, true, 200 * 1024, stream_));
  (void)config;
}

TEST_F(CudaOnCpu, MemoryComesPoisoned) {
  float* fresh = floats(16);
  check_cuda(cudaMemcpyAsync(y_, fresh, 64, cudaMemcpyDeviceToDevice, stream_), "copy");
  for (float value : result(16)) EXPECT_TRUE(std::isnan(value));
  cudaFree(fresh);
}

// One stream writes, another reads. With the event the result is always right; without it, it is
// wrong for some seeds.
TEST_F(CudaOnCpu, FindsAMissingEventWait) {
  std::set<bool> with, without;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    for (bool wait : {true, false}) {
      set_seed(seed);
      launch_fill(y_, 256, -1.0f, stream_);
      check_cuda(cudaStreamSynchronize(stream_), "synchronize");
      const float value = static_cast<float>(2 * seed + wait + 1000);
      launch_fill(x_, 256, value, other_);
      check_cuda(cudaEventRecord(event_, other_), "record");
      if (wait) check_cuda(cudaStreamWaitEvent(stream_, event_, 0), "wait");
      launch_copy(y_, x_, stream_);
      const bool right = result(256)[255] == value;
      (wait ? with : without).insert(right);
      check_cuda(cudaStreamSynchronize(other_), "synchronize");
    }
  }
  EXPECT_EQ(with, std::set<bool>{true});
  EXPECT_TRUE(without.contains(false));
}

// The host writes a pinned buffer again before its copy has run.
TEST_F(CudaOnCpu, FindsAUseBeforeTheCopy) {
  void* pinned = nullptr;
  check_cuda(cudaHostAlloc(&pinned, 64, 0), "pinned");
  auto* values = static_cast<float*>(pinned);
  int wrong = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    std::fill_n(values, 16, 1.0f);
    check_cuda(cudaMemcpyAsync(y_, pinned, 64, cudaMemcpyHostToDevice, stream_), "copy");
    std::fill_n(values, 16, 2.0f);
    wrong += result(16)[0] != 1.0f;
  }
  EXPECT_GT(wrong, kSeeds / 2);
  cudaFreeHost(pinned);
}

TEST_F(CudaOnCpu, ReplaysGraphs) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
  launch_reverse(y_, x_, true, 1024, stream_);
  check_cuda(cudaEventRecord(event_, stream_), "fork");
  check_cuda(cudaStreamWaitEvent(other_, event_, 0), "fork");
  launch_fill(y_ + 256, 256, 7.0f, other_);
  check_cuda(cudaEventRecord(event_, other_), "join");
  check_cuda(cudaStreamWaitEvent(stream_, event_, 0), "join");
  launch_copy(y_ + 512, y_ + 256, stream_);
  check_cuda(cudaStreamEndCapture(stream_, &graph), "end");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  check_cuda(cudaGraphDestroy(graph), "destroy");
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_seed(seed);
    launch_fill(y_, 768, -1.0f, stream_);
    EXPECT_FALSE(is_reversed());
    const int64_t kernels = cuda_on_cpu::counters().kernels;
    check_cuda(cudaGraphLaunch(executable, stream_), "launch");
    EXPECT_TRUE(is_reversed());
    EXPECT_EQ(result(768)[600], 7.0f);
    EXPECT_EQ(cuda_on_cpu::counters().kernels, kernels + 3);
  }
  cudaGraphExecDestroy(executable);
}

TEST_F(CudaOnCpu, CaptureForbidsWaiting) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
  launch_copy(y_, x_, stream_);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
}

TEST_F(CudaOnCpu, CaptureForbidsMemoryAndQueries) {
  void* memory = nullptr;
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "event");
  for (const std::function<cudaError_t()>& call : std::vector<std::function<cudaError_t()>>{
           [&] { return cudaMalloc(&memory, 8); }, [&] { return cudaHostAlloc(&memory, 8, 0); },
           [&] { return cudaFree(memory); }, [&] { return cudaEventQuery(event); }}) {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
    EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
  }
  check_cuda(cudaEventDestroy(event), "event");
}

TEST_F(CudaOnCpu, CountsWaitsOfTheHost) {
  const int64_t before = cuda_on_cpu::counters().host_synchronizations;
  launch_copy(y_, x_, stream_);
  EXPECT_EQ(cuda_on_cpu::counters().host_synchronizations, before);
  check_cuda(cudaStreamSynchronize(stream_), "synchronize");
  EXPECT_EQ(cuda_on_cpu::counters().host_synchronizations, before + 1);
}

// Work that takes time, in a stream and in a graph, where it begins once per launch.
TEST_F(CudaOnCpu, RunsAsynchronousWork) {
  std::vector<int> log;
  int polls = 0;
  const cuda_on_cpu::Start start = [&] {
    log.push_back(polls = 0);
    return [&] { return ++polls == 5; };
  };
  const auto rest = [&] { log.push_back(polls); };
  check_cuda(cuda_on_cpu::enqueue_asynchronous(stream_, "slow", start), "enqueue");
  check_cuda(cuda_on_cpu::enqueue(stream_, "rest", rest), "enqueue");
  check_cuda(cudaStreamSynchronize(stream_), "synchronize");
  EXPECT_EQ(log, (std::vector<int>{0, 5}));

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
  check_cuda(cuda_on_cpu::enqueue_asynchronous(stream_, "slow", start), "enqueue");
  check_cuda(cuda_on_cpu::enqueue(stream_, "rest", rest), "enqueue");
  check_cuda(cudaStreamEndCapture(stream_, &graph), "end");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  check_cuda(cudaGraphDestroy(graph), "destroy");
  EXPECT_EQ(log.size(), 2u);
  for (int launch = 0; launch < 2; ++launch)
    check_cuda(cudaGraphLaunch(executable, stream_), "launch");
  check_cuda(cudaStreamSynchronize(stream_), "synchronize");
  EXPECT_EQ(log, (std::vector<int>{0, 5, 0, 5, 0, 5}));
  cudaGraphExecDestroy(executable);
}

// The order in which the host enqueued the work is known, whatever order the streams take.
TEST_F(CudaOnCpu, TellsWorkItsTurn) {
  std::vector<int> given;
  const auto enqueue = [&](cudaStream_t stream, int which) {
    check_cuda(cuda_on_cpu::enqueue_in_turn(stream, "work",
                                            [&given, which]() -> cuda_on_cpu::Start {
                                              given.push_back(which);
                                              return [] { return cuda_on_cpu::Poll{}; };
                                            }),
               "enqueue");
  };
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin");
  enqueue(stream_, 1);
  check_cuda(cudaEventRecord(event_, stream_), "fork");
  check_cuda(cudaStreamWaitEvent(other_, event_, 0), "fork");
  enqueue(other_, 2);
  enqueue(stream_, 3);
  check_cuda(cudaEventRecord(event_, other_), "join");
  check_cuda(cudaStreamWaitEvent(stream_, event_, 0), "join");
  check_cuda(cudaStreamEndCapture(stream_, &graph), "end");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  check_cuda(cudaGraphDestroy(graph), "destroy");
  EXPECT_EQ(given, std::vector<int>{});
  enqueue(other_, 0);
  check_cuda(cudaGraphLaunch(executable, stream_), "launch");
  enqueue(other_, 4);
  check_cuda(cudaGraphLaunch(executable, stream_), "launch");
  EXPECT_EQ(given, (std::vector<int>{0, 1, 2, 3, 4, 1, 2, 3}));
  check_cuda(cudaDeviceSynchronize(), "synchronize");
  cudaGraphExecDestroy(executable);
}

// Waits for work of others that is never done.
TEST_F(CudaOnCpu, NamesWorkThatNeverEnds) {
  setenv("LATHE_CUDA_PATIENCE", "0.05", 1);
  check_cuda(
      cuda_on_cpu::enqueue_asynchronous(stream_, "endless", [] { return [] { return false; }; }),
      "enqueue");
  EXPECT_THAT(error_of_work(), AllOf(HasSubstr("no progress"), HasSubstr("endless")));
  unsetenv("LATHE_CUDA_PATIENCE");
}

TEST_F(CudaOnCpu, RefusesTheDefaultStream) {
  EXPECT_THROW(launch_copy(y_, x_, nullptr), CheckError);
  EXPECT_THAT(take_error(), HasSubstr("default stream"));
}

}  // namespace
}  // namespace lathe::cuda
