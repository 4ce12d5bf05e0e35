// Only the matmuls of one training step, done by oneDNN as shipped: a step that uses oneDNN cannot
// be faster. Without oneDNN, lathe's own matmuls.
#pragma once

#include <memory>
#include <string>

#include "src/model/config.h"

namespace lathe {

class MatmulFloor {
 public:
  // For a step of `rows` tokens.
  MatmulFloor(const ModelConfig& config, DType dtype, int64_t rows);
  ~MatmulFloor();

  std::string name() const;
  double run();  // milliseconds for all products of a step, forward and backward

 private:
  struct Products;
  std::unique_ptr<Products> products_;
};

}  // namespace lathe
