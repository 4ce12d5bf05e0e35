// A GPU as the device under test, or CUDA on the CPU.
#include <cuda_runtime.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <set>

#include "kernels/cuda/launch.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {

Device& device_under_test() {
  static const std::unique_ptr<Device> device = make_cuda_device();
  return *device;
}

namespace {

constexpr size_t kBlockAlignment = 256;  // as for cudaMalloc, so that twins have equal alignment

struct Block {
  size_t bytes = 0;
  char* twin = nullptr;
  size_t first_copied = 0, copied = 0;
};

// By host address.
std::map<char*, Block>& blocks() {
  static std::map<char*, Block> all;
  return all;
}

// The block that holds an address, or end().
std::map<char*, Block>::iterator block_of(void* address) {
  auto after = blocks().upper_bound(static_cast<char*>(address));
  if (after == blocks().begin()) return blocks().end();
  const auto block = std::prev(after);
  const auto offset = static_cast<size_t>(static_cast<char*>(address) - block->first);
  return offset < block->second.bytes ? block : blocks().end();
}

void copy_blocks(const std::vector<void*>& addresses, cudaMemcpyKind kind) {
  auto* const stream = static_cast<cudaStream_t>(device_under_test().stream());
  std::set<char*> done;
  for (void* address : addresses) {
    const auto block = block_of(address);
    if (!done.insert(block->first).second) continue;
    char* const here = block->first + block->second.first_copied;
    char* const there = block->second.twin + block->second.first_copied;
    const bool up = kind == cudaMemcpyHostToDevice;
    cuda::check_cuda(
        cudaMemcpyAsync(up ? there : here, up ? here : there, block->second.copied, kind, stream),
        "visible memory");
  }
  cuda::check_cuda(cudaStreamSynchronize(stream), "visible memory");
}

}  // namespace

void* allocate_visible(size_t bytes) {
  device_under_test();  // chooses the GPU
  Block block;
  block.bytes = block.copied = (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  void* twin = nullptr;
  cuda::check_cuda(cudaMalloc(&twin, block.bytes), "visible memory");
  block.twin = static_cast<char*>(twin);
  void* const memory = std::aligned_alloc(kBlockAlignment, block.bytes);
  blocks()[static_cast<char*>(memory)] = block;
  return memory;
}

void release_visible(void* memory) noexcept {
  const auto block = blocks().find(static_cast<char*>(memory));
  cudaFree(block->second.twin);
  blocks().erase(block);
  std::free(memory);
}

void* twin_of(void* address) {
  const auto block = block_of(address);
  if (block == blocks().end()) return address;
  return block->second.twin + (static_cast<char*>(address) - block->first);
}

void copy_only(void* first, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  const auto block = block_of(first);
  block->second.first_copied = static_cast<size_t>(static_cast<char*>(first) - block->first);
  block->second.copied = bytes;
#else
  static_cast<void>(first), static_cast<void>(bytes);  // guards are copied back and checked
#endif
}

void copy_to_device(const std::vector<void*>& addresses) {
  copy_blocks(addresses, cudaMemcpyHostToDevice);
}

void copy_to_host(const std::vector<void*>& addresses) {
  copy_blocks(addresses, cudaMemcpyDeviceToHost);
}

bool looks_at_values() {
  return false;
}

}  // namespace lathe::testing
