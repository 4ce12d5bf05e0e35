// One up-front block of device memory, cut into tensors by category, and the plan it must match.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/round.h"
#include "kernels/device/tensor.h"

namespace lathe {

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

// Bytes by space and category, each tensor rounded up to the arena's alignment.
struct MemoryPlan {
  std::array<std::array<size_t, kMemoryCategories>, kMemorySpaces> bytes{};

  void add(MemoryCategory category, DType dtype, int64_t elements,
           MemorySpace space = MemorySpace::device) {
    of(category, space) +=
        round_up(static_cast<size_t>(elements) * size_of(dtype), kArenaAlignment);
  }
  size_t& of(MemoryCategory category, MemorySpace space = MemorySpace::device) {
    return bytes[static_cast<size_t>(space)][static_cast<size_t>(category)];
  }
  size_t of(MemoryCategory category, MemorySpace space = MemorySpace::device) const {
    return bytes[static_cast<size_t>(space)][static_cast<size_t>(category)];
  }
  size_t total(MemorySpace space = MemorySpace::device) const {
    size_t sum = 0;
    for (size_t b : bytes[static_cast<size_t>(space)]) sum += b;
    return sum;
  }
  bool operator==(const MemoryPlan&) const = default;
};

// Human-readable table of a plan, one category per line, without empty categories and spaces.
std::string to_string(const MemoryPlan& plan);

// AddressSanitizer detects overruns of separate allocations only.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSeparateAllocations = true;
#else
inline constexpr bool kSeparateAllocations = false;
#endif

// A capacity for an arena that only counts (kernels/imagined_device.h).
inline constexpr size_t kBoundless = size_t{1} << 62;

// Owns `capacity` bytes of a device's memory and `pinned` bytes of the host's, and hands them out
// in order; nothing is given back before the arena is destroyed. Tensors are zeroed. Under
// AddressSanitizer each tensor is an allocation of its own, so that overruns are detected.
class Arena {
 public:
  explicit Arena(Device& device, size_t capacity, size_t pinned = 0);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Throws CheckError if the tensor does not fit into the capacity, which comes from the plan.
  Tensor allocate(MemoryCategory category, DType dtype, Shape shape,
                  MemorySpace space = MemorySpace::device);

  // Counts bytes that the caller keeps in a file.
  void count_file(MemoryCategory category, size_t bytes) {
    used_.of(category, MemorySpace::file) += bytes;
  }

  const MemoryPlan& used() const { return used_; }
  Device& device() const { return device_; }

 private:
  struct Block {
    size_t capacity = 0, offset = 0;
    char* memory = nullptr;
    std::vector<std::pair<void*, size_t>> separate;
  };

  Device& device_;
  std::array<Block, kMemorySpaces> blocks_;  // by space
  MemoryPlan used_;
};

}  // namespace lathe
