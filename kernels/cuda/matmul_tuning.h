// Trial runs of products on the device: which plan is fastest, and whether a plan repeats its bits.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/cuda/matmul_plan.h"

namespace lathe::cuda {

// A product that can be run any number of times before the real call. One that overwrites c runs in
// place; one that adds to c runs on a copy, in memory allocated for the trial.
class MatmulTrial {
 public:
  explicit MatmulTrial(const MatmulArgs& args, cudaStream_t stream);

  bool possible() const { return possible_; }  // false: no memory for the copy
  const MatmulArgs& args() const { return args_; }
  // Restores the copy to the original c.
  void reset();
  // Whether three runs of `run`, which enqueues args(), give the same bits. False if a run returns
  // false. Waits for the stream.
  bool repeats(const std::function<bool()>& run);

 private:
  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };
  using Memory = std::unique_ptr<void, Free>;
  static Memory allocate(size_t bytes);  // null if there is not enough

  MatmulArgs args_;
  const void* original_;
  cudaStream_t stream_;
  size_t bytes_;
  bool possible_ = true;
  Memory copy_;
};

struct MatmulCandidate {
  MatmulChoice choice;
  float milliseconds = std::numeric_limits<float>::infinity();  // infinite: the library refuses it
};

class MatmulTuner {
 public:
  MatmulTuner();
  ~MatmulTuner();
  MatmulTuner(const MatmulTuner&) = delete;
  MatmulTuner& operator=(const MatmulTuner&) = delete;

  // Enqueues the product with that choice on the stream; false if the library refuses.
  using Run = std::function<bool(const MatmulChoice&)>;

  // Fills in the candidates' times and returns the index of the best. The first is the library's
  // own choice; another must be clearly faster, so that noise does not decide. All are timed once,
  // then the fastest ones again, in turns. A candidate's minimum counts, so that a change of the
  // clock favours none. Waits for the stream.
  size_t fastest(std::vector<MatmulCandidate>& candidates, const Run& run, cudaStream_t stream);

 private:
  void warm_up(const MatmulChoice& choice, const Run& run, cudaStream_t stream);
  // Milliseconds per run, the mean of `runs`; infinite if the library refuses.
  float time(const MatmulChoice& choice, int runs, const Run& run, cudaStream_t stream) const;

  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  bool warm_ = false;
};

}  // namespace lathe::cuda
