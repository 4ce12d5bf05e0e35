// Every collective, checked value by value and timed, as nccl-tests does it.
#pragma once

#include <cstdint>
#include <vector>

#include "src/comm/collective.h"

namespace lathe {

// One line of a table: a collective at one size.
struct CommCase {
  CollectiveKind kind{};
  DType dtype = DType::fp32;
  Reduction op = Reduction::sum;  // of those that reduce
  int root = 0;                   // of those that have one
  int64_t count = 0;              // elements of a rank's part, or of the tensor
};

// Of one way to place the tensors.
struct CommResult {
  double microseconds = 0;        // a call, the slowest rank
  double algorithm_gb_per_s = 0;  // bytes of the whole tensor by that time
  double bus_gb_per_s = 0;        // and by what each link must carry of it at least
  int64_t wrong = 0;              // values, over all ranks
};

class CommMeasure {
 public:
  // Tensors of up to max_bytes. All ranks do the same.
  CommMeasure(Device& device, Communicator& comm, size_t max_bytes);
  ~CommMeasure();
  CommMeasure(const CommMeasure&) = delete;
  CommMeasure& operator=(const CommMeasure&) = delete;

  // Bytes of the whole tensor of a case, which is what tables name as the size.
  size_t bytes(const CommCase& c) const;
  // Largest count whose tensor fits into max_bytes.
  int64_t largest_count(CollectiveKind kind, DType dtype, size_t max_bytes) const;
  // One call is checked, and `iterations` more are timed; 0: no times.
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
  Communicator& comm_;
  const size_t bytes_;
  void* send_;
  void* receive_;
  std::vector<std::byte> host_;
};

}  // namespace lathe
