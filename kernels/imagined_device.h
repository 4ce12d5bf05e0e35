// A device that computes nothing and hands out addresses without memory behind them. Objects built
// on it request the memory and the workspaces that they would request from a real device. This is
// how memory is planned.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "kernels/device/arena.h"
#include "kernels/device/copy_queue.h"
#include "kernels/device/device.h"
#include "kernels/device/in_order_queue.h"
#include "kernels/device/round.h"
#include "kernels/observed_ops.h"

namespace lathe {

// Nobody may read through its tensors' addresses. `real` outlives it.
class ImaginedDevice : public Device {
 public:
  explicit ImaginedDevice(Device& real) : real_(real) {}

  DeviceKind kind() const override { return real_.kind(); }
  std::string name() const override { return real_.name(); }
  double peak_flops(DType dtype) const override { return real_.peak_flops(dtype); }
  void* allocate(size_t bytes, MemorySpace) override {
    return reinterpret_cast<void*>(std::exchange(next_, next_ + round_up(bytes, kArenaAlignment)));
  }
  void release(void*, size_t, MemorySpace) noexcept override {}
  void upload(const Tensor&, const void*) override {}
  void download(void*, const Tensor&) override {}
  void zero(const Tensor&) override {}
  void copy(const Tensor&, const Tensor&) override {}
  void synchronize() override {}
  std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<NoCopies>(*this);
  }
  bool asynchronous() const override { return false; }
  void replay(int, const std::function<void()>& body) override { body(); }
  void read_back(int, const Tensor&) override {}
  void collect(int, void*) override {}
  void mark(int) override {}
  double milliseconds_between(int, int) override { return 0; }
  // Built on the real device's tables: they return the workspace that they need and run nothing.
  const Ops& ops(DType dtype) override {
    return tables_.try_emplace(dtype, real_.ops(dtype)).first->second;
  }

 private:
  class NoCopies final : public CopyQueue {
   public:
    explicit NoCopies(Device& device) : queue_(device) {}
    Ticket copy(const Tensor&, const Tensor&) override { return queue_.put(); }
    Ticket call(std::function<void()>) override { return queue_.put(); }
    Queue& queue() override { return queue_; }

   private:
    InOrderQueue queue_;
  };

  Device& real_;
  uintptr_t next_ = kArenaAlignment;  // addresses are distinct, as on a real device
  std::map<DType, RecordingOps> tables_;
};

// The bytes, by category, that build(device, arena) takes from an arena of `real`.
template <typename Build>
MemoryPlan count_memory(Device& real, const Build& build) {
  ImaginedDevice device(real);
  Arena arena(device, kBoundless, kBoundless);
  build(device, arena);
  return arena.used();
}

}  // namespace lathe
