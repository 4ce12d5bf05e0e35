// Checks that every operation makes of its tensors before it touches them, on either device.
#pragma once

#include "kernels/device/tensor.h"

namespace lathe {

// For a tensor [..., C]: C, and the product of the other dimensions.
inline int64_t columns_of(const Tensor& tensor) {
  LATHE_CHECK(tensor.shape.rank > 0);
  return tensor.shape[tensor.shape.rank - 1];
}
inline int64_t rows_of(const Tensor& tensor) {
  const int64_t columns = columns_of(tensor);
  return columns == 0 ? 0 : tensor.elements() / columns;
}

// While memory is being planned, tensors have shapes but no data. An absent tensor has no shape.
inline bool is_planned(const Tensor& tensor) {
  return tensor.data != nullptr || tensor.shape.rank > 0;
}

// `tensor` is present and has this type, shape [..., columns] and `rows` rows.
inline void check_matrix(const Tensor& tensor, DType dtype, int64_t rows, int64_t columns,
                         const char* name) {
  LATHE_CHECK(tensor || rows * columns == 0, "{} is absent", name);
  LATHE_CHECK(tensor.dtype == dtype, "{} is {}, expected {}", name, name_of(tensor.dtype),
              name_of(dtype));
  LATHE_CHECK(columns_of(tensor) == columns && rows_of(tensor) == rows,
              "{} is {}, expected {} x {}", name, to_string(tensor.shape), rows, columns);
}

// `tensor` is present and has this type and this number of elements, in any shape.
inline void check_vector(const Tensor& tensor, DType dtype, int64_t elements, const char* name) {
  LATHE_CHECK(tensor || elements == 0, "{} is absent", name);
  LATHE_CHECK(tensor.dtype == dtype, "{} is {}, expected {}", name, name_of(tensor.dtype),
              name_of(dtype));
  LATHE_CHECK(tensor.elements() == elements, "{} is {}, expected {} elements", name,
              to_string(tensor.shape), elements);
}

inline void check_workspace(const Tensor& workspace, size_t bytes) {
  LATHE_CHECK(workspace.bytes() >= bytes, "workspace has {} bytes, expected {}", workspace.bytes(),
              bytes);
}

}  // namespace lathe
