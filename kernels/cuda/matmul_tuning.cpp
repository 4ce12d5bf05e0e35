#include "kernels/cuda/matmul_tuning.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/cuda/digest.h"
#include "kernels/cuda/launch.h"

namespace lathe::cuda {

namespace {

constexpr float kNever = std::numeric_limits<float>::infinity();
constexpr float kWorthwhile = 0.98f;  // of the first candidate's time
// An idle GPU needs some tens of milliseconds to raise its clock.
constexpr float kWarmUpMilliseconds = 100;
constexpr int kWarmUpRuns = 8;  // between two readings of the time
// How many of the fastest are timed more than once, if they are anywhere near the best.
constexpr size_t kFinalists = 8;
constexpr float kNear = 1.25f;
constexpr int kRounds = 3, kTimedRuns = 3;

constexpr size_t kRepeats = 3;

}  // namespace

MatmulTrial::MatmulTrial(const MatmulArgs& args, cudaStream_t stream)
    : args_(args),
      original_(args.c),
      stream_(stream),
      bytes_(static_cast<size_t>((args.m - 1) * args.ldc + args.n) * size_of(args.output)) {
  if (!args.accumulate) return;
  copy_ = allocate(bytes_);
  possible_ = copy_ != nullptr;
  if (!possible_) return;
  args_.c = copy_.get();
  reset();
}

MatmulTrial::Memory MatmulTrial::allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(error, "memory to try a product in");
  return Memory(memory);
}

void MatmulTrial::reset() {
  if (!copy_) return;
  check_cuda(cudaMemcpyAsync(args_.c, original_, bytes_, cudaMemcpyDeviceToDevice, stream_),
             "copy");
}

bool MatmulTrial::repeats(const std::function<bool()>& run) {
  std::array<uint64_t, kRepeats> digests{};
  const Memory memory = allocate(sizeof(digests));
  if (!possible_ || !memory) return false;
  auto* const on_device = static_cast<uint64_t*>(memory.get());
  check_cuda(cudaMemsetAsync(on_device, 0, sizeof(digests), stream_), "digest");
  const auto words = static_cast<int64_t>(size_of(args_.output) / sizeof(uint16_t));
  for (size_t i = 0; i < kRepeats; ++i) {
    reset();
    if (!run()) return false;
    add_digest(on_device + i, args_.c, args_.m, args_.n * words, args_.ldc * words, stream_);
  }
  check_cuda(
      cudaMemcpyAsync(digests.data(), on_device, sizeof(digests), cudaMemcpyDeviceToHost, stream_),
      "digest");
  check_cuda(cudaStreamSynchronize(stream_), "trying a product");
  return std::ranges::all_of(digests, [&](uint64_t digest) { return digest == digests[0]; });
}

MatmulTuner::MatmulTuner() {
  check_cuda(cudaEventCreate(&start_), "event");
  check_cuda(cudaEventCreate(&stop_), "event");
}

MatmulTuner::~MatmulTuner() {
  cudaEventDestroy(start_);
  cudaEventDestroy(stop_);
}

float MatmulTuner::time(const MatmulChoice& choice, int runs, const Run& run,
                        cudaStream_t stream) const {
  check_cuda(cudaEventRecord(start_, stream), "event");
  for (int i = 0; i < runs; ++i)
    if (!run(choice)) return kNever;
  check_cuda(cudaEventRecord(stop_, stream), "event");
  check_cuda(cudaEventSynchronize(stop_), "timing a product");
  float elapsed = 0;
  check_cuda(cudaEventElapsedTime(&elapsed, start_, stop_), "timing a product");
  return elapsed / static_cast<float>(runs);
}

void MatmulTuner::warm_up(const MatmulChoice& choice, const Run& run, cudaStream_t stream) {
  for (float elapsed = 0; !warm_ && elapsed < kWarmUpMilliseconds;)
    elapsed += kWarmUpRuns * time(choice, kWarmUpRuns, run, stream);
  warm_ = true;
}

size_t MatmulTuner::fastest(std::vector<MatmulCandidate>& candidates, const Run& run,
                            cudaStream_t stream) {
  warm_up(candidates.front().choice, run, stream);
  for (MatmulCandidate& candidate : candidates) {
    time(candidate.choice, 1, run, stream);  // loads the kernel
    candidate.milliseconds = time(candidate.choice, 1, run, stream);
  }
  std::vector<size_t> order(candidates.size() - 1);
  std::iota(order.begin(), order.end(), size_t{1});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return candidates[i].milliseconds; });
  if (order.size() > kFinalists) order.resize(kFinalists);
  order.insert(order.begin(), 0);
  float least = kNever;
  for (size_t i : order) least = std::min(least, candidates[i].milliseconds);
  std::erase_if(order,
                [&](size_t i) { return i != 0 && !(candidates[i].milliseconds <= kNear * least); });
  for (int round = 0; round < kRounds && order.size() > 1; ++round)
    for (size_t i : order) {
      float& best = candidates[i].milliseconds;
      best = std::min(best, time(candidates[i].choice, kTimedRuns, run, stream));
    }
  size_t chosen = 0;
  least = kWorthwhile * candidates[0].milliseconds;
  for (size_t i : order)
    if (candidates[i].milliseconds < least) least = candidates[i].milliseconds, chosen = i;
  return chosen;
}

}  // namespace lathe::cuda
