#include "kernels/device/arena.h"

#include "kernels/device/device.h"
#include "kernels/device/round.h"

namespace lathe {

std::string_view name_of(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::weights:
      return "weights";
    case MemoryCategory::masters:
      return "fp32 masters";
    case MemoryCategory::gradients:
      return "gradients";
    case MemoryCategory::optimizer:
      return "AdamW moments";
    case MemoryCategory::activations:
      return "activations";
    case MemoryCategory::workspace:
      return "workspace";
    case MemoryCategory::batch:
      return "batch";
    case MemoryCategory::cache:
      return "KV cache";
  }
  return "?";
}

std::string to_string(const MemoryPlan& plan) {
  std::string text;
  for (int i = 0; i < kMemoryCategories; ++i) {
    if (plan.bytes[i] == 0) continue;
    text += fmt::format("  {:<14} {:>16} bytes {:>10.2f} MiB\n",
                        name_of(static_cast<MemoryCategory>(i)), plan.bytes[i],
                        static_cast<double>(plan.bytes[i]) / (1 << 20));
  }
  return text + fmt::format("  {:<14} {:>16} bytes {:>10.2f} MiB\n", "total", plan.total(),
                            static_cast<double>(plan.total()) / (1 << 20));
}

Arena::Arena(Device& device, size_t capacity) : device_(device), capacity_(capacity) {
  if (!kSeparateAllocations && capacity > 0) {
    block_ = static_cast<char*>(device.allocate(capacity));
  }
}

Arena::~Arena() {
  if (block_) device_.release(block_, capacity_);
  for (const auto& [memory, bytes] : separate_) device_.release(memory, bytes);
}

Tensor Arena::allocate(MemoryCategory category, DType dtype, Shape shape) {
  Tensor tensor{nullptr, dtype, shape};
  const size_t bytes = round_up(tensor.bytes(), kArenaAlignment);
  LATHE_CHECK(offset_ + bytes <= capacity_,
              "the memory plan of {} bytes is too small for {} more of {} after {}", capacity_,
              bytes, name_of(category), offset_);
  if (bytes > 0) {
    if (kSeparateAllocations) {
      separate_.emplace_back(device_.allocate(tensor.bytes()), tensor.bytes());
      tensor.data = separate_.back().first;
    } else {
      tensor.data = block_ + offset_;
    }
  }
  offset_ += bytes;
  used_.add(category, dtype, tensor.elements());
  return tensor;
}

}  // namespace lathe
