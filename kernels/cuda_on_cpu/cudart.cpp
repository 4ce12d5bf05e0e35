// The stand-in for libcudart: memory, streams, events, graphs; runtime.h describes its behaviour.
// It implements only what lathe calls; any other call does not link.
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "kernels/cuda_on_cpu/backoff.h"
#include "kernels/cuda_on_cpu/block.h"
#include "kernels/cuda_on_cpu/execution.h"
#include "kernels/cuda_on_cpu/runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// The opaque types of the runtime's interface.
struct CUevent_st {
  uint64_t recorded = 0, reached = 0;  // counts
  double milliseconds = 0;             // when last reached
  CUgraph_st* graph = nullptr;         // if recorded in a capture: stands for `nodes`
  std::vector<int> nodes;
};

struct CUgraph_st {
  struct Node {
    std::string name;
    lathe::cuda_on_cpu::Enqueued enqueued;
    std::vector<int> after;  // nodes that come first
  };
  std::vector<Node> nodes;
  bool broken = false;  // by a call that a capture forbids
};

struct CUgraphExec_st {
  std::vector<CUgraph_st::Node> nodes;
};

namespace lathe::cuda_on_cpu {

namespace {

constexpr size_t kAlignment = 256, kRedZone = 256, kDefaultShared = 48 * 1024;
constexpr unsigned char kPoison = 0xff, kRed = 0xa5;

enum class Step { kIdle, kMoved, kDone };

// A piece of work in a stream. step() does some of it, or reports that it must wait for others.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool ready() const { return true; }
  virtual Step step(Random& random) = 0;
  virtual std::string name() const = 0;
};

// Work that is started and then polled until it is done.
class Call final : public Work {
 public:
  Call(std::string name, Start start) : name_(std::move(name)), start_(std::move(start)) {}
  Step step(Random&) override {
    if (begun_) return poll_() ? Step::kDone : Step::kIdle;
    begun_ = true;
    poll_ = start_();
    return !poll_ || poll_() ? Step::kDone : Step::kMoved;
  }
  std::string name() const override { return name_; }

 private:
  std::string name_;
  Start start_;
  Poll poll_;
  bool begun_ = false;
};

class WaitEvent final : public Work {
 public:
  explicit WaitEvent(const CUevent_st* event) : event_(event), recorded_(event->recorded) {}
  bool ready() const override { return event_->reached >= recorded_; }
  Step step(Random&) override { return Step::kDone; }
  std::string name() const override { return "a wait for an event"; }

 private:
  const CUevent_st* event_;
  uint64_t recorded_;
};

// Runs the nodes of a graph in a random order that respects their dependences.
class LaunchGraph final : public Work {
 public:
  explicit LaunchGraph(const std::vector<CUgraph_st::Node>& nodes)
      : nodes_(nodes), waits_for_(nodes.size()) {
    for (CUgraph_st::Node& node : nodes_) {
      calls_.emplace_back(node.name, node.enqueued());
      node.enqueued = nullptr;  // belongs to the graph
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      waits_for_[i] = static_cast<int>(nodes[i].after.size());
      if (waits_for_[i] == 0) ready_.push_back(static_cast<int>(i));
    }
  }
  Step step(Random& random) override {
    if (ready_.empty()) return Step::kDone;
    const size_t chosen = random.below(static_cast<uint32_t>(ready_.size()));
    const int node = ready_[chosen];
    const Step step = calls_[static_cast<size_t>(node)].step(random);
    if (step != Step::kDone) return step;
    ready_.erase(ready_.begin() + static_cast<long>(chosen));
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const auto& after = nodes_[i].after;
      if (std::find(after.begin(), after.end(), node) == after.end()) continue;
      if (--waits_for_[i] == 0) ready_.push_back(static_cast<int>(i));
    }
    return ready_.empty() ? Step::kDone : Step::kMoved;
  }
  std::string name() const override {
    std::string names = "a graph at";
    for (int node : ready_) names += " " + nodes_[static_cast<size_t>(node)].name;
    return names;
  }

 private:
  std::vector<CUgraph_st::Node> nodes_;  // the graph may be destroyed before it has run
  std::vector<Call> calls_;
  std::vector<int> waits_for_, ready_;
};

}  // namespace
}  // namespace lathe::cuda_on_cpu

struct CUstream_st {
  std::deque<std::unique_ptr<lathe::cuda_on_cpu::Work>> queue;
  CUgraph_st* capture = nullptr;
  bool origin = false;     // of the capture
  std::vector<int> after;  // nodes of the capture that the next one depends on
};

namespace lathe::cuda_on_cpu {

namespace {

const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

class Runtime {
 public:
  static Runtime& instance() {
    static Runtime runtime;
    return runtime;
  }

  // ---- Errors stay until somebody takes them, as after a real kernel's error.
  cudaError_t error() const { return sticky_.empty() ? cudaSuccess : cudaErrorLaunchFailure; }
  const std::string& message() const { return sticky_; }
  std::string take_error() { return std::exchange(sticky_, {}); }
  void fail(const std::string& what) {
    if (!sticky_.empty()) return;
    sticky_ = what;
    fmt::print(stderr, "CUDA on the CPU: {}\n", what);
    if (!running_) forget_work();  // else the running work would be destroyed
  }

  // ---- Streams.
  cudaError_t enqueue(cudaStream_t stream, const std::string& name, std::function<void()> work) {
    return begin(stream, name, [work = std::move(work)]() -> Start {
      return [work] {
        work();
        return Poll{};
      };
    });
  }
  cudaError_t begin(cudaStream_t stream, const std::string& name, Enqueued enqueued) {
    if (error() != cudaSuccess) return error();
    if (profiling_ && name != "kernel") tell("launch " + name);
    if (stream == nullptr) {
      fail(name + " on the default stream, which would wait for all others");
      return error();
    }
    if (stream->capture) {
      stream->after = {add_node(*stream->capture, {name, std::move(enqueued), stream->after})};
      return cudaSuccess;
    }
    push(stream, std::make_unique<Call>(name, enqueued()));
    return cudaSuccess;
  }
  void push(cudaStream_t stream, std::unique_ptr<Work> work) {
    stream->queue.push_back(std::move(work));
    // Sometimes the device is quick.
    if (random_.below(16) == 0) run_some();
  }
  static int add_node(CUgraph_st& graph, CUgraph_st::Node node) {
    graph.nodes.push_back(std::move(node));
    return static_cast<int>(graph.nodes.size()) - 1;
  }
  // Does one piece of work of a stream drawn among those that are ready.
  bool run_some() {
    if (running_) return false;
    std::vector<CUstream_st*> able;
    for (CUstream_st* stream : streams_)
      if (!stream->queue.empty() && stream->queue.front()->ready()) able.push_back(stream);
    if (able.empty()) return false;
    CUstream_st* stream = able[random_.below(static_cast<uint32_t>(able.size()))];
    running_ = true;
    const Step step = stream->queue.front()->step(random_);
    running_ = false;
    if (error() != cudaSuccess) {
      forget_work();
      return true;
    }
    if (step == Step::kIdle) {
      if (!backoff_.idle()) fail("no progress: " + names_of(able));
      return true;
    }
    backoff_.moved();
    if (step == Step::kDone) stream->queue.pop_front();
    check_red_zones();
    return true;
  }
  static std::string names_of(const std::vector<CUstream_st*>& streams) {
    std::string names;
    for (const CUstream_st* stream : streams)
      names += (names.empty() ? "" : ", ") + stream->queue.front()->name();
    return names;
  }
  template <typename Condition>
  cudaError_t run_until(const Condition& reached) {
    while (error() == cudaSuccess && !reached()) {
      if (!run_some()) fail("the streams wait for each other");
    }
    return error();
  }
  cudaError_t drain() {
    return run_until([&] {
      return std::all_of(streams_.begin(), streams_.end(),
                         [](const CUstream_st* s) { return s->queue.empty(); });
    });
  }
  // Counts a wait of the host, which is forbidden while a stream is being captured.
  bool may_wait() {
    ++counters_.host_synchronizations;
    for (CUstream_st* stream : streams_) {
      if (!stream->capture) continue;
      stream->capture->broken = true;
      return false;
    }
    return true;
  }

  bool is_capturing() const {
    return std::any_of(streams_.begin(), streams_.end(),
                       [](const CUstream_st* s) { return s->capture != nullptr; });
  }

  // For calls that the capturing thread may make only in the relaxed mode: they end the capture.
  // (One OS thread does everything that a test does with the device.)
  cudaError_t unsafe_while_capturing() {
    for (CUstream_st* stream : streams_) {
      if (!stream->capture) continue;
      stream->capture->broken = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
  }

  cudaError_t profile(bool start) {
    if (start == profiling_) return cudaErrorInvalidValue;
    profiling_ = start;
    if (start) ++counters_.profiles;
    tell(fmt::format("{} kernels {} launches {} graphs {}", start ? "start" : "stop",
                     counters_.kernels, counters_.launches, counters_.graphs));
    return cudaSuccess;
  }
  bool profiling() const { return profiling_; }
  static void tell(const std::string& line) {
    if (const char* log = environment("LATHE_CUDA_PROFILE"); *log)
      std::ofstream(log, std::ios::app) << line << "\n";
  }

  // ---- Memory, poisoned, between red zones.
  cudaError_t allocate(void** memory, size_t bytes, bool device) {
    ++counters_.allocations;
    const size_t room = room_of(bytes);
    if (device && bytes > free_memory()) return cudaErrorMemoryAllocation;
    void* const start = pages(room);
    if (start == nullptr) return cudaErrorMemoryAllocation;
    char* const block = static_cast<char*>(start) + kRedZone;
    std::memset(start, kRed, kRedZone);
    if (!listener_) std::memset(block, kPoison, bytes);
    std::memset(block + bytes, kRed, kRedZone);
    guard(block, bytes);
    allocations_[block] = {bytes, device};
    if (device) used_ += bytes;
    *memory = block;
    return cudaSuccess;
  }
  static size_t room_of(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment + 2 * kRedZone;
  }
  // If work is only listed, reserves addresses that take no memory until they are written to.
  void* pages(size_t room) const {
    void* start = nullptr;
    if (!listener_) return posix_memalign(&start, kAlignment, room) == 0 ? start : nullptr;
    start = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
    return start == MAP_FAILED ? nullptr : start;
  }
  cudaError_t release(void* memory) {
    if (memory == nullptr) return cudaSuccess;
    const auto found = allocations_.find(static_cast<char*>(memory));
    if (found == allocations_.end()) return cudaErrorInvalidValue;
    if (found->second.device) used_ -= found->second.bytes;
    unguard(found->first, found->second.bytes);
    char* const start = found->first - kRedZone;
    if (listener_) {
      munmap(start, room_of(found->second.bytes));
    } else {
      std::free(start);
    }
    allocations_.erase(found);
    return cudaSuccess;
  }
  // AddressSanitizer detects the access to a red zone; other builds find the damage afterwards.
#if defined(__SANITIZE_ADDRESS__)
  static void guard(char* block, size_t bytes) {
    ASAN_POISON_MEMORY_REGION(block - kRedZone, kRedZone);
    ASAN_POISON_MEMORY_REGION(block + bytes, kRedZone);
  }
  static void unguard(char* block, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(block - kRedZone, bytes + 2 * kRedZone);
  }
  void check_red_zones() {}
#else
  static void guard(char*, size_t) {}
  static void unguard(char*, size_t) {}
  void check_red_zones() {
    for (const auto& [block, allocation] : allocations_) {
      for (size_t i = 0; i < kRedZone; ++i) {
        const bool before = static_cast<unsigned char>(block[i - kRedZone]) != kRed;
        if (!before && static_cast<unsigned char>(block[allocation.bytes + i]) == kRed) continue;
        fail(fmt::format("{} wrote {} an allocation of {} bytes", last_work_,
                         before ? "before" : "after", allocation.bytes));
        return;
      }
    }
  }
#endif
  // The allocation that holds [memory, memory + bytes): 1 on the device, 0 pinned, -1 none.
  int owner(const void* memory, size_t bytes) const {
    auto after = allocations_.upper_bound(static_cast<char*>(const_cast<void*>(memory)));
    if (after == allocations_.begin()) return -1;
    const auto& [block, allocation] = *std::prev(after);
    const auto offset = static_cast<size_t>(static_cast<const char*>(memory) - block);
    if (offset + bytes > allocation.bytes) return -1;
    return allocation.device ? 1 : 0;
  }
  size_t free_memory() const {
    return memory_ > used_ ? memory_ - used_ : 0;
  }
  size_t all_memory() const {
    return memory_;
  }

  Gpu& gpu() {
    return gpu_;
  }
  WorkListener*& listener() {
    return listener_;
  }

  void pretend(double milliseconds) {
    pretended_ms_ += milliseconds;
  }

  void will_run(const std::string& name) {
    last_work_ = name;
  }
  Random& random() {
    return random_;
  }
  Counters& counters() {
    return counters_;
  }
  std::set<CUstream_st*>& streams() {
    return streams_;
  }
  std::set<CUevent_st*>& events() {
    return events_;
  }
  std::map<const void*, size_t>& shared_allowed() {
    return shared_allowed_;
  }
  double milliseconds() const {
    return pretended_ms_ +
           std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
               .count();
  }

 private:
  struct Allocation {
    size_t bytes;
    bool device;
  };
  Runtime() {
    const std::string seed = environment("LATHE_CUDA_SEED");
    if (!seed.empty()) random_ = Random(std::stoull(seed));
    const std::string memory = environment("LATHE_CUDA_MEMORY");
    memory_ = memory.empty() ? size_t{1} << 40 : std::stoull(memory);
  }

  void forget_work() {
    for (CUstream_st* stream : streams_) stream->queue.clear();
  }

  Gpu gpu_;
  WorkListener* listener_ = nullptr;
  double pretended_ms_ = 0;
  Random random_{1};
  bool profiling_ = false;
  Counters counters_;
  Backoff backoff_;
  std::string sticky_, last_work_;
  bool running_ = false;
  std::set<CUstream_st*> streams_;
  std::set<CUevent_st*> events_;
  std::map<char*, Allocation> allocations_;
  std::map<const void*, size_t> shared_allowed_;
  size_t memory_ = 0, used_ = 0;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Runtime& runtime() {
  return Runtime::instance();
}

// The error of a machine that cannot run CUDA programs.
cudaError_t fault() {
  const std::string word = environment("LATHE_CUDA_FAULT");
  if (word == "no-driver") return cudaErrorInsufficientDriver;
  if (word == "old-driver") return cudaErrorInsufficientDriver;
  if (word == "no-device") return cudaErrorNoDevice;
  return cudaSuccess;
}

cudaError_t enqueue_copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                         cudaStream_t stream) {
  Runtime& r = runtime();
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  if (to_device && r.owner(to, bytes) < 0) return cudaErrorInvalidValue;
  if (from_device && r.owner(from, bytes) < 0) return cudaErrorInvalidValue;
  if (r.listener()) return r.error();
  // A copy from pageable memory may be staged at once or read later.
  if (!from_device && r.owner(from, bytes) < 0 && r.random().below(2) == 1) {
    std::vector<char> staged(static_cast<const char*>(from),
                             static_cast<const char*>(from) + bytes);
    return r.enqueue(stream, "copy", [to, bytes, staged = std::move(staged)] {
      runtime().will_run("a copy");
      std::memcpy(to, staged.data(), bytes);
    });
  }
  return r.enqueue(stream, "copy", [=] {
    runtime().will_run("a copy");
    std::memcpy(to, from, bytes);
  });
}

}  // namespace

cudaError_t enqueue(cudaStream_t stream, const std::string& name, std::function<void()> work) {
  return runtime().enqueue(stream, name, [name, work = std::move(work)] {
    runtime().will_run(name);
    work();
  });
}

cudaError_t enqueue_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                           std::function<void()> thread_body) {
  Runtime& r = runtime();
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (uint64_t{block.x} * block.y * block.z > 1024 || block.x * block.y * block.z == 0 ||
      block.z > 64 || grid.x * uint64_t{grid.y} * grid.z == 0 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const auto allowed = r.shared_allowed().find(kernel);
  if (config.dynamicSmemBytes >
      (allowed == r.shared_allowed().end() ? kDefaultShared : allowed->second))
    return cudaErrorInvalidValue;
  ++r.counters().launches;
  if (r.listener()) {
    r.listener()->kernel(kernel, grid, block, config.dynamicSmemBytes);
    return r.error();
  }
  if (r.profiling()) r.tell("launch " + function_name(kernel));
  const KernelLaunch launch{kernel, grid, block, config.dynamicSmemBytes, std::move(thread_body)};
  return r.enqueue(config.stream, "kernel", [launch] {
    Runtime& runtime = Runtime::instance();
    ++runtime.counters().kernels;
    runtime.will_run("kernel " + function_name(launch.kernel));
    const std::string error = run_kernel(launch, runtime.random());
    if (!error.empty()) runtime.fail(error);
  });
}

// The most that a kernel may request.
size_t shared_per_block() {
  constexpr size_t kOfGeForce = 99 * 1024;
  return std::string_view(environment("LATHE_CUDA_FAULT")) == "rtx3090"
             ? kOfGeForce
             : runtime().gpu().shared_per_block;
}

cudaError_t allow_shared_memory(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > shared_per_block()) return cudaErrorInvalidValue;
  runtime().shared_allowed()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t enqueue_asynchronous(cudaStream_t stream, const std::string& name, Start start) {
  return enqueue_in_turn(stream, name, [start = std::move(start)] { return start; });
}
cudaError_t enqueue_in_turn(cudaStream_t stream, const std::string& name, Enqueued enqueued) {
  return runtime().begin(stream, name, [name, enqueued = std::move(enqueued)]() -> Start {
    return [name, start = enqueued()] {
      runtime().will_run(name);
      return start();
    };
  });
}
bool is_capturing() {
  return runtime().is_capturing();
}
bool make_progress() {
  return runtime().run_some();
}

void pretend_to_take(double milliseconds) {
  runtime().pretend(milliseconds);
}

void play(const Gpu& gpu) {
  runtime().gpu() = gpu;
}
void tell(WorkListener& listener) {
  runtime().listener() = &listener;
}
WorkListener* listener() {
  return runtime().listener();
}

void set_seed(uint64_t seed) {
  runtime().random() = Random(seed);
}
Counters counters() {
  return runtime().counters();
}
void fail(const std::string& what) {
  runtime().fail(what);
}
std::string take_error() {
  return runtime().take_error();
}
bool is_device_memory(const void* memory, size_t bytes) {
  return runtime().owner(memory, bytes) == 1;
}

}  // namespace lathe::cuda_on_cpu

using lathe::cuda_on_cpu::fault;
using lathe::cuda_on_cpu::runtime;

extern "C" {

// ---- The device.

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  *count = 0;
  if (fault() == cudaSuccess) *count = 1;
  return fault();
}
cudaError_t CUDARTAPI cudaSetDevice(int device) {
  return device == 0 ? fault() : cudaErrorInvalidDevice;
}
cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = 0;
  return fault();
}
cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  const std::string word = lathe::cuda_on_cpu::environment("LATHE_CUDA_FAULT");
  *version = word == "no-driver" ? 0 : word == "old-driver" ? 11040 : CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(static_cast<void*>(properties), 0, sizeof(*properties));
  std::strcpy(properties->name, "CUDA on the CPU");
  const std::string word = lathe::cuda_on_cpu::environment("LATHE_CUDA_FAULT");
  properties->major = word == "old-architecture" ? 7 : word == "a100" || word == "rtx3090" ? 8 : 9;
  properties->minor = word == "rtx3090" ? 6 : 0;
  properties->multiProcessorCount = runtime().gpu().multiprocessors;
  properties->totalGlobalMem = runtime().all_memory();
  properties->sharedMemPerBlockOptin = lathe::cuda_on_cpu::shared_per_block();
  return fault();
}
cudaError_t CUDARTAPI cudaDeviceSynchronize() {
  return runtime().may_wait() ? runtime().drain() : cudaErrorStreamCaptureUnsupported;
}

// ---- Profiler. A real one accepts a second start; here that is an error, because then the
// recorded range is unclear.

cudaError_t CUDARTAPI cudaProfilerStart() {
  return runtime().profile(true);
}
cudaError_t CUDARTAPI cudaProfilerStop() {
  return runtime().profile(false);
}

// ---- Errors.

cudaError_t CUDARTAPI cudaGetLastError() {
  return runtime().error();
}
cudaError_t CUDARTAPI cudaPeekAtLastError() {
  return runtime().error();
}
const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    default:
      return "another CUDA error";
  }
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? runtime().message().c_str() : cudaGetErrorName(error);
}

// ---- Memory.

cudaError_t CUDARTAPI cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  return runtime().allocate(memory, bytes, true);
}
cudaError_t CUDARTAPI cudaMallocManaged(void** memory, size_t bytes, unsigned) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  return runtime().allocate(memory, bytes, true);
}
cudaError_t CUDARTAPI cudaFree(void* memory) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  const cudaError_t error = runtime().drain();  // the real one waits, too
  const cudaError_t released = runtime().release(memory);
  return error == cudaSuccess ? released : error;
}
cudaError_t CUDARTAPI cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  return runtime().allocate(memory, bytes, false);
}
cudaError_t CUDARTAPI cudaMallocHost(void** memory, size_t bytes) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  return runtime().allocate(memory, bytes, false);
}
cudaError_t CUDARTAPI cudaFreeHost(void* memory) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  return runtime().release(memory);
}
cudaError_t CUDARTAPI cudaMemGetInfo(size_t* free, size_t* total) {
  *free = runtime().free_memory();
  *total = runtime().all_memory();
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream) {
  return lathe::cuda_on_cpu::enqueue_copy(to, from, bytes, kind, stream);
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && runtime().owner(memory, bytes) < 0) return cudaErrorInvalidValue;
  if (runtime().listener()) return runtime().error();
  return lathe::cuda_on_cpu::enqueue(stream, "memset", [=] { std::memset(memory, value, bytes); });
}

// ---- Streams.

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  runtime().streams().insert(*stream);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;  // the order is drawn
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) {
  runtime().run_until([&] { return stream->queue.empty(); });
  runtime().streams().erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream) {
  if (!runtime().may_wait()) return cudaErrorStreamCaptureUnsupported;
  return runtime().run_until([&] { return stream->queue.empty(); });
}
cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  runtime().run_some();
  if (runtime().error() != cudaSuccess) return runtime().error();
  return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (runtime().error() != cudaSuccess) return runtime().error();
  if (event->graph) {  // joins the capture
    if (stream->capture == nullptr) stream->capture = event->graph;
    if (stream->capture != event->graph) return cudaErrorStreamCaptureInvalidated;
    for (int node : event->nodes)
      if (std::find(stream->after.begin(), stream->after.end(), node) == stream->after.end())
        stream->after.push_back(node);
    return cudaSuccess;
  }
  if (stream->capture) {  // a graph cannot depend on work outside it
    stream->capture->broken = true;
    return cudaErrorStreamCaptureInvalidated;
  }
  runtime().push(stream, std::make_unique<lathe::cuda_on_cpu::WaitEvent>(event));
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return lathe::cuda_on_cpu::enqueue(stream, "host function", [=] { function(data); });
}

// ---- Events.

cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  runtime().events().insert(*event);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event) {
  runtime().run_until([&] { return event->reached == event->recorded; });
  runtime().events().erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                               unsigned flags) {
  const auto reach = [event] { event->milliseconds = runtime().milliseconds(); };
  if (stream != nullptr && stream->capture) {
    if (flags & cudaEventRecordExternal)
      return lathe::cuda_on_cpu::enqueue(stream, "event", [=] { reach(); });
    event->graph = stream->capture;
    event->nodes = stream->after;
    return cudaSuccess;
  }
  event->graph = nullptr;
  const uint64_t recorded = ++event->recorded;
  return lathe::cuda_on_cpu::enqueue(stream, "event", [=] {
    reach();
    event->reached = std::max(event->reached, recorded);
  });
}
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) {
  if (!runtime().may_wait()) return cudaErrorStreamCaptureUnsupported;
  return runtime().run_until([&] { return event->reached >= event->recorded; });
}
cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t unsafe = runtime().unsafe_while_capturing(); unsafe != cudaSuccess)
    return unsafe;
  runtime().run_some();
  if (runtime().error() != cudaSuccess) return runtime().error();
  return event->reached >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                           cudaEvent_t end) {
  if (start->reached < start->recorded || end->reached < end->recorded) return cudaErrorNotReady;
  *milliseconds = static_cast<float>(end->milliseconds - start->milliseconds);
  return cudaSuccess;
}

// ---- Graphs.

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  stream->capture = new CUgraph_st;
  stream->origin = true;
  stream->after.clear();
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream && stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream->capture == nullptr || !stream->origin) return cudaErrorInvalidValue;
  CUgraph_st* const captured = stream->capture;
  bool joined = true;
  for (CUstream_st* other : runtime().streams()) {
    if (other->capture != captured) continue;
    // Every node of a forked stream must come before the end of the origin.
    for (int node : other->after) {
      if (other == stream) continue;
      const auto& nodes = captured->nodes;
      bool followed =
          std::find(stream->after.begin(), stream->after.end(), node) != stream->after.end();
      for (const auto& later : nodes)
        followed |= std::find(later.after.begin(), later.after.end(), node) != later.after.end();
      joined &= followed;
    }
    other->capture = nullptr;
    if (other != stream) other->after.clear();  // they are nodes of this graph only
  }
  for (CUevent_st* event : runtime().events())
    if (event->graph == captured) event->graph = nullptr;
  stream->capture = nullptr;
  stream->origin = false;
  stream->after.clear();
  *graph = nullptr;
  if (captured->broken || !joined) {
    delete captured;
    return cudaErrorStreamCaptureInvalidated;
  }
  *graph = captured;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                           unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (runtime().error() != cudaSuccess) return runtime().error();
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  ++runtime().counters().launches;
  ++runtime().counters().graphs;
  runtime().push(stream, std::make_unique<lathe::cuda_on_cpu::LaunchGraph>(executable->nodes));
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

}  // extern "C"
