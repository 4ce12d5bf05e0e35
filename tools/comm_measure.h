// Checks every collective value by value and times it, like nccl-tests.
#pragma once

#include <cstdint>
#include <vector>

#include "src/comm/collective.h"

namespace lathe {

// One row of a table: a collective at one size.
struct CommCase {
  CollectiveKind kind{};
  DType dtype = DType::fp32;
  Reduction op = Reduction::sum;  // for collectives that reduce
  int root = 0;                   // for collectives that have one
  int64_t count = 0;              // elements of a rank's part, or of the tensor
};

// The result for one placement of the tensors.
struct CommResult {
  double microseconds = 0;        // per call, of the slowest rank
  double algorithm_gb_per_s = 0;  // bytes of the whole tensor divided by that time
  double bus_gb_per_s = 0;        // the same times the fraction that each link must carry
  int64_t wrong = 0;              // wrong values, over all ranks
};

class CommMeasure {
 public:
  // Tensors of up to max_bytes. `all`: `comm`, or all ranks of its sister groups, which work at the
  // same time. All of them make the same calls; results are over all of them.
  CommMeasure(Device& device, Communicator& comm, Communicator& all, size_t max_bytes);
  ~CommMeasure();
  CommMeasure(const CommMeasure&) = delete;
  CommMeasure& operator=(const CommMeasure&) = delete;

  // Bytes of a case's whole tensor; tables list this as the size.
  size_t bytes(const CommCase& c) const;
  // Largest count whose tensor fits into max_bytes.
  int64_t largest_count(CollectiveKind kind, DType dtype, size_t max_bytes) const;
  // Checks one call and times `iterations` more; 0: no times.
  CommResult run(const CommCase& c, bool in_place, int iterations);

 private:
  struct Tensors {
    Tensor in, out;
  };
  Tensors place(const CommCase& c, bool in_place) const;
  void fill(const CommCase& c, const Tensors& tensors);
  void call(const CommCase& c, const Tensors& tensors);
  int64_t count_wrong(const CommCase& c, const Tensor& out);
  double slowest(double mine);

  Device& device_;
  Communicator &comm_, &all_;
  const size_t bytes_;
  void* send_;
  void* receive_;
  std::vector<std::byte> host_;
};

}  // namespace lathe
