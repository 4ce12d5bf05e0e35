#include "kernels/cuda/recordings.h"

#include "kernels/cuda/launch.h"

namespace lathe::cuda {

Recordings::~Recordings() {
  clear();
}

void Recordings::clear() {
  for (const auto& [key, recording] : recordings_) {
    if (recording.graph) cudaGraphExecDestroy(recording.graph);
  }
  recordings_.clear();
}

void Recordings::replay(int key, const std::function<void()>& body) {
  Recording& recording = recordings_[key];
  if (!recording.warm) {
    body();
    recording.warm = true;
    return;
  }
  if (recording.graph == nullptr) recording.graph = capture(body);
  check_cuda(cudaGraphLaunch(recording.graph, stream_), "launch of a recording");
}

cudaGraphExec_t Recordings::capture(const std::function<void()>& body) {
  cudaGraph_t graph = nullptr;
  // Other threads (loaders) may call CUDA freely while this one captures.
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording");
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);  // or the stream would capture forever
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream_, &graph), "recording");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(error, "recording");
  return executable;
}

}  // namespace lathe::cuda
