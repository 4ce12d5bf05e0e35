// The stand-in for the CUDA runtime, as tests and the other stand-ins see it.
//
// Streams are lazy: enqueued work runs only when somebody waits for it, in an order drawn from the
// seed among all orders that streams and events allow. New memory is poisoned. Environment
// variables set a process's defaults:
//   LATHE_CUDA_SEED=N       the seed (default 1)
//   LATHE_CUDA_MEMORY=N     bytes of device memory (default: unlimited)
//   LATHE_CUDA_PATIENCE=S   seconds without progress after which a wait is an error (backoff.h)
//   LATHE_CUDA_PROFILE=F    a file; cudaProfilerStart and Stop each add a line to it with the
//                           current counters, and each kernel, copy, event, ... in between adds
//                           one, too
//   LATHE_CUDA_FAULT=WORD   no-driver, old-driver, no-device or old-architecture: behaves like a
//                           machine that cannot run lathe; a100, rtx3090: like such a GPU (8.0;
//                           8.6, with 99 KiB of shared memory for a block) and not like an H100
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

namespace lathe::cuda_on_cpu {

// Enqueues a piece of a library's work, in stream order, or adds it to the graph that the stream is
// captured into.
cudaError_t enqueue(cudaStream_t stream, const std::string& name, std::function<void()> work);

// The same for work that takes time, such as communication: start() begins it and returns a
// function to poll until it returns true (or an empty function if the work is done already).
using Poll = std::function<bool()>;
using Start = std::function<Poll()>;
cudaError_t enqueue_asynchronous(cudaStream_t stream, const std::string& name, Start start);

// The same for work that must know its turn: enqueued() is called when the host puts the work into
// a stream. In a graph it is called once per launch, in the order of the capture.
using Enqueued = std::function<Start()>;
cudaError_t enqueue_in_turn(cudaStream_t stream, const std::string& name, Enqueued enqueued);

// Whether any stream is being captured into a graph.
bool is_capturing();

// Does some of the queued work, as the device would while the host waits for something else. False
// if no queued work is ready to run or waits for other processes.
bool make_progress();

// Pretends that the calling work took this much longer: events show it, but nothing waits.
void pretend_to_take(double milliseconds);

// From here on everything is drawn with this seed.
void set_seed(uint64_t seed);

struct Counters {
  int64_t host_synchronizations = 0;  // calls that made the host wait for the device
  int64_t kernels = 0;                // run
  int64_t launches = 0;               // requested by the host; a whole graph counts once
  int64_t graphs = 0;                 // among the launches
  int64_t allocations = 0;
  int64_t profiles = 0;  // started by cudaProfilerStart
};
Counters counters();

// The simulated GPU, as cudaGetDeviceProperties describes it.
struct Gpu {
  int multiprocessors = 3;
  size_t shared_per_block = 227 * 1024;  // bytes, with the attribute that allows more than 48 KiB
};
void play(const Gpu& gpu);

// Receives kernels and matrix products, which are then not run. Copies and memsets are left out as
// well, and allocated memory is not touched, so a step of any size is listed at once. Values that
// the host reads back are meaningless.
class WorkListener {
 public:
  virtual ~WorkListener() = default;
  virtual void kernel(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) = 0;
  struct Product {  // d [m, n] = a [m, k] b [k, n], row-major
    uint64_t m = 0, n = 0, k = 0;
    bool bf16_in = false, bf16_out = false;
    bool adds = false;        // to what d holds
    bool has_vector = false;  // a bias, or sums of columns
  };
  virtual void product(const Product& product) = 0;
};
// Call it before anything is allocated; the listener outlives all work.
void tell(WorkListener& listener);
WorkListener* listener();  // null if work is run

// Inside a kernel: ends it with an error that names kernel, block and thread.
[[noreturn]] void fail_kernel(std::string what);

// Makes the device fail, as after a kernel's error: everything queued is lost.
void fail(const std::string& what);

// Returns and clears the error, or returns an empty string; then the device works again.
std::string take_error();

// Whether [memory, memory + bytes) lies in one allocation of the device.
bool is_device_memory(const void* memory, size_t bytes);

}  // namespace lathe::cuda_on_cpu
