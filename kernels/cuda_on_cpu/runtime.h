// The stand-in for the CUDA runtime, as its tests and the other stand-ins see it.
//
// Streams are lazy: what is enqueued runs only when somebody waits for it, in an order drawn from
// the seed among all that stream order and events allow. Memory comes poisoned. The environment
// sets up what a process starts with:
//   LATHE_CUDA_SEED=N       the seed (default 1)
//   LATHE_CUDA_MEMORY=N     bytes of device memory (default: no bound of its own)
//   LATHE_CUDA_PATIENCE=S   seconds in which nothing moves and a wait is an error (backoff.h)
//   LATHE_CUDA_PROFILE=F    a file that cudaProfilerStart and Stop each add a line to, with what
//                           the counters say by then; each kernel, copy, event, ... in between
//                           adds one, too
//   LATHE_CUDA_FAULT=WORD   no-driver, old-driver, no-device or old-architecture: what a machine
//                           that cannot run lathe would answer
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

namespace lathe::cuda_on_cpu {

// Enqueues a piece of a library's work, in stream order, or adds it to the graph that the stream is
// being captured into.
cudaError_t enqueue(cudaStream_t stream, const std::string& name, std::function<void()> work);

// The same for work that takes its time, as communication does: start() begins it and returns what
// is asked until it says that all is done (or nothing, where it is done already).
using Poll = std::function<bool()>;
using Start = std::function<Poll()>;
cudaError_t enqueue_asynchronous(cudaStream_t stream, const std::string& name, Start start);

// The same for work that must know its turn: enqueued() is called when the host puts the work into
// a stream, also as part of a graph, once per launch and in the order in which it was captured.
using Enqueued = std::function<Start()>;
cudaError_t enqueue_in_turn(cudaStream_t stream, const std::string& name, Enqueued enqueued);

// Whether any stream is being captured into a graph.
bool is_capturing();

// Does some of the queued work, as the device would by itself while the host waits for something
// else. False where nothing is left that could go on, now or when others have come so far.
bool make_progress();

// As if the work that calls this had taken so much longer: events show it, nobody waits.
void pretend_to_take(double milliseconds);

// From here on everything is drawn from this seed.
void set_seed(uint64_t seed);

struct Counters {
  int64_t host_synchronizations = 0;  // calls that made the host wait for the device
  int64_t kernels = 0;                // run
  int64_t launches = 0;               // asked for by the host, a whole graph counting once
  int64_t graphs = 0;                 // of the launches
  int64_t allocations = 0;
  int64_t profiles = 0;  // begun by cudaProfilerStart
};
Counters counters();

// The GPU that is played, as cudaGetDeviceProperties describes it.
struct Gpu {
  int multiprocessors = 3;
  size_t shared_per_block = 227 * 1024;  // bytes, with the attribute that allows more than 48 KiB
};
void play(const Gpu& gpu);

// Who is told of kernels and matrix products instead of their being run. Copies and memsets are
// left out as well, and memory is given out without being touched: a step of any size is listed at
// once. The values that the host reads back mean nothing.
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
// From here on, before anything is allocated; the listener outlives all work.
void tell(WorkListener& listener);
WorkListener* listener();  // or null: work is run

// Inside a kernel: ends it with an error that names kernel, block and thread.
[[noreturn]] void fail_kernel(std::string what);

// The device fails, as after a kernel's error: everything queued is lost.
void fail(const std::string& what);

// What was wrong, or empty; forgets it, and the device works again.
std::string take_error();

// Whether [memory, memory + bytes) lies in one allocation of the device.
bool is_device_memory(const void* memory, size_t bytes);

}  // namespace lathe::cuda_on_cpu
