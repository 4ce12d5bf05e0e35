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
  const auto line = [](std::string_view name, size_t bytes) {
    return fmt::format("  {:<14} {:>16} bytes {:>10.2f} MiB\n", name, bytes,
                       static_cast<double>(bytes) / (1 << 20));
  };
  std::string text;
  for (const MemorySpace space : {MemorySpace::device, MemorySpace::pinned, MemorySpace::file}) {
    if (space != MemorySpace::device && plan.total(space) == 0) continue;
    if (space == MemorySpace::pinned) text += "memory plan of the host\n";
    if (space == MemorySpace::file) text += "in a file\n";
    for (int i = 0; i < kMemoryCategories; ++i) {
      const auto category = static_cast<MemoryCategory>(i);
      if (plan.of(category, space) > 0) text += line(name_of(category), plan.of(category, space));
    }
    text += line("total", plan.total(space));
  }
  return text;
}

Arena::Arena(Device& device, size_t capacity, size_t pinned) : device_(device) {
  for (const auto& [space, bytes] :
       {std::pair(MemorySpace::device, capacity), {MemorySpace::pinned, pinned}}) {
    Block& block = blocks_[static_cast<size_t>(space)];
    block.capacity = bytes;
    if (!kSeparateAllocations && bytes > 0)
      block.memory = static_cast<char*>(device.allocate(bytes, space));
  }
}

Arena::~Arena() {
  for (const MemorySpace space : {MemorySpace::device, MemorySpace::pinned}) {
    const Block& block = blocks_[static_cast<size_t>(space)];
    if (block.memory) device_.release(block.memory, block.capacity, space);
    for (const auto& [memory, bytes] : block.separate) device_.release(memory, bytes, space);
  }
}

Tensor Arena::allocate(MemoryCategory category, DType dtype, Shape shape, MemorySpace space) {
  LATHE_CHECK(space != MemorySpace::file);
  Block& block = blocks_[static_cast<size_t>(space)];
  Tensor tensor{nullptr, dtype, shape};
  const size_t bytes = round_up(tensor.bytes(), kArenaAlignment);
  LATHE_CHECK(block.offset + bytes <= block.capacity,
              "the memory plan of {} bytes is too small for {} more of {} after {}", block.capacity,
              bytes, name_of(category), block.offset);
  if (bytes > 0) {
    if (kSeparateAllocations) {
      block.separate.emplace_back(device_.allocate(tensor.bytes(), space), tensor.bytes());
      tensor.data = block.separate.back().first;
    } else {
      tensor.data = block.memory + block.offset;
    }
  }
  block.offset += bytes;
  used_.add(category, dtype, tensor.elements(), space);
  return tensor;
}

}  // namespace lathe
