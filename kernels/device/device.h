// A device: memory, copies between it and the host, work that is repeated, and what it is called.
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

class Ops;
struct OpCost;
class PartObserver;

// `any` is only a wish: a GPU if one answers, else the CPU.
enum class DeviceKind : uint8_t { any, cpu, cuda };
// As --device names it.
constexpr std::string_view name_of(DeviceKind kind) {
  return kind == DeviceKind::any ? "auto" : kind == DeviceKind::cpu ? "cpu" : "cuda";
}

class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;   // cpu or cuda
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
  // Within the device: as many bytes, no overlap.
  virtual void copy(const Tensor& destination, const Tensor& source) = 0;
  virtual void synchronize() = 0;

  // Whether operations and copies return before they are done. They are done in the order of the
  // calls in either case.
  virtual bool asynchronous() const = 0;

  // Does what the operations and marks in `body` do. They may depend on nothing that changes from
  // one call to the next but the content of device memory: a device may call `body` for the first
  // replays of a `key`, record what it enqueues, and from then on enqueue the recording instead.
  virtual void replay(int key, const std::function<void()>& body) = 0;

  // From here on each key is as if it were new; replays under way go on. For those whose work the
  // recordings hold and that come to their end.
  virtual void forget_recordings() {}

  // A small tensor on its way to the host. read_back enqueues the copy; collect waits for that copy
  // and nothing behind it, and writes it to `destination`. A slot holds one copy at a time.
  static constexpr int kReadBacks = 2;
  virtual void read_back(int slot, const Tensor& source) = 0;
  virtual void collect(int slot, void* destination) = 0;

  // Marks: when the device last came by, in the order of the operations. A user of marks takes a
  // range of numbers for itself and gets the first of them. Both marks must have been passed when
  // the time between them is asked for, as is certain after collect() of a copy that was enqueued
  // behind them.
  int take_marks(int count) { return std::exchange(marks_taken_, marks_taken_ + count); }
  virtual void mark(int number) = 0;
  virtual double milliseconds_between(int from, int to) = 0;

  // The line that all of this is enqueued on, as the device's own libraries know it (CUDA's
  // stream); null where everything is done on return.
  virtual void* stream() { return nullptr; }
  // A mark in another line than stream(): on a CPU, in another thread.
  virtual void mark_on(void*, int number) { mark(number); }

  // Who hears of the parts of operations (kernels/ops.h) from here on; null: nobody. A device that
  // tells of none has whole operations only.
  virtual void observe_parts(PartObserver*) {}

  // A profiler that watches the process (Nsight) sees what happens between start and stop, both of
  // which wait for the device. False if nobody could watch: then nothing is started.
  virtual bool start_profile() { return false; }
  virtual void stop_profile() {}
  // Named stretches of the host's enqueueing, nested, with what they cost, for that profiler to
  // show. They do nothing outside of start and stop; what a recording enqueues lies in none.
  virtual void push_range(std::string_view, const OpCost&) {}
  virtual void pop_range() {}

  // Bytes of memory that a run may plan with: the device's, less what drivers and libraries take.
  // 0 if that is not known.
  virtual size_t memory_bytes() const { return 0; }

  // How this device computes matrix products, where it chose by trying: text for a checkpoint, so
  // that a resumed run, which loads it before its first step, computes the same bits. "" where
  // there is nothing to remember; what another device said is passed over. Recordings made before
  // load_plans hold what was planned before: forget_recordings().
  virtual std::string plans() const { return {}; }
  virtual void load_plans(const std::string&) {}
  // What was tried and how long it took, as a table with tabs between the columns.
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
  bool autotune = true;        // the fastest plan of each matrix product is found by trying
  // Bytes, 16 to 256: how well operands may be said to be aligned when products are planned.
  int64_t matmul_alignment = 16;
};

// An NVIDIA GPU: kernels/cuda. Throws a UserError that says why where there is none to be had.
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options = {});
int cuda_device_count();  // GPUs that answer; 0 in a build without CUDA

std::unique_ptr<Device> make_device(DeviceKind kind, int threads,
                                    const CudaDeviceOptions& cuda = {});

}  // namespace lathe
