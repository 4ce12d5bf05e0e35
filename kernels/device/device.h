// A device: memory, copies between it and the host, replayed work, and its name and properties.
// Implemented by kernels/cpu and kernels/cuda; nothing above kernels/ knows which one it holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/device/tensor.h"

namespace lathe {

class CopyQueue;
class Ops;
struct OpCost;
class PartObserver;

// Where memory lies. `pinned`: on the host; a GPU reads and writes it over the bus. For a CPU both
// are the same. `file`: on a disk of the host, only counted (MemoryPlan), never allocated.
enum class MemorySpace : uint8_t { device, pinned, file };
inline constexpr int kMemorySpaces = 3;

// `any` is a wish only: a GPU if there is one, else the CPU.
enum class DeviceKind : uint8_t { any, cpu, cuda };
// As written after --device.
constexpr std::string_view name_of(DeviceKind kind) {
  return kind == DeviceKind::any ? "auto" : kind == DeviceKind::cpu ? "cpu" : "cuda";
}

class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;   // cpu or cuda
  virtual std::string name() const = 0;  // as printed in the banner
  // Dense peak in FLOP/s for matmuls in this number type. 0 if unknown: then no MFU is reported,
  // rather than a wrong one.
  virtual double peak_flops(DType dtype) const = 0;

  // Zeroed memory aligned to kArenaAlignment. Throws UserError if there is not enough. Operations
  // and copies take addresses in any space.
  virtual void* allocate(size_t bytes, MemorySpace space = MemorySpace::device) = 0;
  virtual void release(void* memory, size_t bytes,
                       MemorySpace space = MemorySpace::device) noexcept = 0;

  // Copies in stream order. When upload returns, `source` has been read; when download returns,
  // `destination` has been written (so it waits for the work before it).
  virtual void upload(const Tensor& destination, const void* source) = 0;
  virtual void download(void* destination, const Tensor& source) = 0;
  virtual void zero(const Tensor& tensor) = 0;
  // Between any spaces: equal sizes in bytes, no overlap.
  virtual void copy(const Tensor& destination, const Tensor& source) = 0;
  virtual void synchronize() = 0;
  virtual std::unique_ptr<CopyQueue> make_copy_queue() = 0;

  // Whether operations and copies return before they are done. In either case they are done in the
  // order of the calls.
  virtual bool asynchronous() const = 0;

  // Does what the operations and marks in `body` do. From one call to the next, only the content of
  // device memory may change what they do: a device may call `body` for the first replays of a
  // `key`, record what it enqueues, and from then on enqueue the recording instead.
  virtual void replay(int key, const std::function<void()>& body) = 0;

  // Drops all recordings (running replays finish). Call it before destroying an object that a
  // recording uses.
  virtual void forget_recordings() {}

  // Sends a small tensor to the host. read_back enqueues the copy; collect waits for that copy and
  // nothing after it, and writes it to `destination`. A slot holds one copy at a time.
  static constexpr int kReadBacks = 2;
  virtual void read_back(int slot, const Tensor& source) = 0;
  virtual void collect(int slot, void* destination) = 0;

  // A mark records the time at which the device last reached it, in the order of the operations. A
  // user of marks takes a range of numbers; take_marks returns the first. milliseconds_between
  // requires that both marks have been reached, which is certain after collect() of a copy that was
  // enqueued after them.
  int take_marks(int count) { return std::exchange(marks_taken_, marks_taken_ + count); }
  virtual void mark(int number) = 0;
  virtual double milliseconds_between(int from, int to) = 0;

  // The stream that all of this is enqueued on, as the device's own libraries know it (a CUDA
  // stream); null if everything is done on return.
  virtual void* stream() { return nullptr; }
  // A mark in a stream other than stream(): on a CPU, in another thread.
  virtual void mark_on(void*, int number) { mark(number); }

  // Reports the parts of operations (kernels/ops.h) to this observer from here on; null: to none. A
  // device whose operations all have one part reports none.
  virtual void observe_parts(PartObserver*) {}

  // A profiler attached to the process (Nsight) records what happens between start and stop, both
  // of which wait for the device. False if no profiler can record: then nothing is started.
  virtual bool start_profile() { return false; }
  virtual void stop_profile() {}
  // Named, nested ranges of the host's enqueueing, with their cost, for that profiler to show. They
  // do nothing outside of start and stop; work that a recording enqueues lies in no range.
  virtual void push_range(std::string_view, const OpCost&) {}
  virtual void pop_range() {}

  // Bytes of memory that a run may plan with: the device's, minus what drivers and libraries take.
  // 0 if unknown.
  virtual size_t memory_bytes() const { return 0; }

  // How this device computes matrix products, if it chose by trying: text for a checkpoint. A
  // resumed run loads it before its first step, so that it computes the same bits. "" if there is
  // nothing to remember. load_plans ignores another device's plans. Recordings made before
  // load_plans keep the old plans: call forget_recordings().
  virtual std::string plans() const { return {}; }
  virtual void load_plans(const std::string&) {}
  // What was tried and how long it took, as a table with tab-separated columns.
  virtual std::string tuning_log() const { return {}; }

  // The table of operations (kernels/ops.h) for activations and weights of this number type.
  virtual const Ops& ops(DType dtype) = 0;

 private:
  int marks_taken_ = 0;
};

// The CPU: kernels/cpu. `threads` as OpenMP counts them; 0 takes OpenMP's own choice.
std::unique_ptr<Device> make_cpu_device(int threads = 0);

struct CudaDeviceOptions {
  int index = 0;               // of the GPU, as CUDA counts them
  bool tf32 = false;           // fp32 matrix products may round their inputs to TF32
  bool deterministic = false;  // only matrix products whose sums have a fixed order
  bool autotune = true;        // find the fastest plan of each matrix product by trying
  // Bytes, 16 to 256: the largest alignment of operands that plans of products may assume.
  int64_t matmul_alignment = 16;
};

// An NVIDIA GPU: kernels/cuda. Throws a UserError with the reason if there is none.
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options = {});
int cuda_device_count();  // usable GPUs; 0 in a build without CUDA

std::unique_ptr<Device> make_device(DeviceKind kind, int threads,
                                    const CudaDeviceOptions& cuda = {});

}  // namespace lathe
