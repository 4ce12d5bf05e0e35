// Ranks with CUDA on the CPU, with streams in several orders.
#include "kernels/cuda_on_cpu/runtime.h"
#include "tests/comm/harness.h"

namespace lathe::testing {

std::unique_ptr<Device> make_test_device() {
  return make_cuda_device({.deterministic = true});
}

std::vector<Variant> variants_under_test() {
  std::vector<Variant> variants;
  for (const CommKind kind : {CommKind::nccl, CommKind::mpi})
    for (const int seed : {1, 2, 3}) variants.push_back({kind, seed});
  return variants;
}

void set_stream_seed(int seed) {
  cuda_on_cpu::set_seed(static_cast<uint64_t>(seed));
}

}  // namespace lathe::testing
