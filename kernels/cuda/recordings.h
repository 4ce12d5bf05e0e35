// Work that is repeated, as CUDA graphs: one launch from the host in place of some hundreds.
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

  // The first replay of a key runs `body` as it is: matrix products are planned and tuned then,
  // which a capture cannot hold. The second captures it, and from then on the graph is launched.
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
