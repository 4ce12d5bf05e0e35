// The matmuls of one training step and nothing else, done by oneDNN as it ships: what a step cannot
// be faster than if oneDNN does its matmuls. Where oneDNN is absent, lathe's own matmuls.
#pragma once

#include <memory>
#include <string>

#include "src/model/config.h"

namespace lathe {

class MatmulFloor {
 public:
  // `rows` tokens of a step.
  MatmulFloor(const GPT2Config& config, DType dtype, int64_t rows);
  ~MatmulFloor();

  std::string name() const;
  double run();  // milliseconds for all of a step's products, forward and backward

 private:
  struct Products;
  std::unique_ptr<Products> products_;
};

}  // namespace lathe
