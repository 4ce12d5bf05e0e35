// Repeated work as CUDA graphs: one launch from the host instead of some hundreds.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <map>

namespace lathe::cuda {

class Recordings {
 public:
  explicit Recordings(cudaStream_t stream) : stream_(stream) {}
  ~Recordings();
  Recordings(const Recordings&) = delete;
  Recordings& operator=(const Recordings&) = delete;

  // The first replay of a key runs `body` normally: it plans and tunes matrix products, which
  // cannot happen in a capture. The second captures it; later ones launch the graph.
  void replay(int key, const std::function<void()>& body);
  void clear();

 private:
  struct Recording {
    bool warm = false;
    cudaGraphExec_t graph = nullptr;
  };
  cudaGraphExec_t capture(const std::function<void()>& body);

  cudaStream_t stream_;
  std::map<int, Recording> recordings_;
};

}  // namespace lathe::cuda
