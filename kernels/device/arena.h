// One up-front block of device memory, cut into tensors by category, and the plan it must match.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device/round.h"
#include "kernels/device/tensor.h"

namespace lathe {

class Device;

// What a byte of the arena is for. The order is that of the printed plan.
enum class MemoryCategory {
  weights,
  masters,
  gradients,
  optimizer,
  activations,
  workspace,
  batch,
  cache
};
inline constexpr int kMemoryCategories = 8;
std::string_view name_of(MemoryCategory category);

// Every tensor starts on a multiple of this many bytes: whole cache lines, and best for cuBLASLt.
inline constexpr size_t kArenaAlignment = 256;

// Bytes by category, each tensor rounded up to the arena's alignment.
struct MemoryPlan {
  std::array<size_t, kMemoryCategories> bytes{};

  void add(MemoryCategory category, DType dtype, int64_t elements) {
    bytes[static_cast<int>(category)] +=
        round_up(static_cast<size_t>(elements) * size_of(dtype), kArenaAlignment);
  }
  size_t total() const {
    size_t sum = 0;
    for (size_t b : bytes) sum += b;
    return sum;
  }
  bool operator==(const MemoryPlan&) const = default;
};

// Human-readable table of a plan, one category per line, without empty categories.
std::string to_string(const MemoryPlan& plan);

// AddressSanitizer detects overruns of separate allocations only.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSeparateAllocations = true;
#else
inline constexpr bool kSeparateAllocations = false;
#endif

// A capacity for an arena that only counts (kernels/imagined_device.h).
inline constexpr size_t kBoundless = size_t{1} << 62;

// Owns `capacity` bytes of a device's memory and hands them out in order; nothing is given back
// before the arena is destroyed. Tensors are zeroed. Under AddressSanitizer each tensor is an
// allocation of its own, so that overruns are detected.
class Arena {
 public:
  Arena(Device& device, size_t capacity);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Throws CheckError if the tensor does not fit into the capacity, which comes from the plan.
  Tensor allocate(MemoryCategory category, DType dtype, Shape shape);

  const MemoryPlan& used() const { return used_; }

 private:
  Device& device_;
  size_t capacity_;
  char* block_ = nullptr;
  size_t offset_ = 0;
  std::vector<std::pair<void*, size_t>> separate_;
  MemoryPlan used_;
};

}  // namespace lathe
