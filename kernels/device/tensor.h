// A tensor is a typed view of device memory that somebody else owns: data, number type, shape.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/device/dtype.h"
#include "kernels/device/error.h"

namespace lathe {

// Up to four dimensions, outermost first.
struct Shape {
  std::array<int64_t, 4> dim{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    LATHE_CHECK(dims.size() <= dim.size());
    for (int64_t d : dims) dim[rank++] = d;
  }
  int64_t operator[](int i) const { return dim[i]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim[i];
    return n;
  }
  bool operator==(const Shape&) const = default;
};

inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// As printed in tables: "65536x768x3072".
inline std::string times_text(const Shape& shape) {
  std::string text;
  for (int i = 0; i < shape.rank; ++i) text += (i ? "x" : "") + std::to_string(shape[i]);
  return text;
}

// Row-major and dense. An absent tensor (no bias, no dropout, ...) has data == nullptr.
// Only kernels dereference `data`: it may point into a GPU's memory.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::fp32;
  Shape shape;

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const { return shape.elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }

  template <typename T>
  T* as() const {
    LATHE_CHECK(data == nullptr || dtype == dtype_of<T>, "tensor is {}, expected {}",
                name_of(dtype), name_of(dtype_of<T>));
    return static_cast<T*>(data);
  }

  // Rows first .. first + count of the longest dimension.
  Tensor rows(int64_t first, int64_t count) const {
    LATHE_CHECK(shape.rank > 0 && first >= 0 && count >= 0 && first + count <= shape[0]);
    Tensor part = *this;
    part.shape.dim[0] = count;
    const int64_t stride = shape[0] == 0 ? 0 : elements() / shape[0];
    if (data) part.data = static_cast<char*>(data) + first * stride * size_of(dtype);
    return part;
  }
  // The same elements under another shape.
  Tensor reshaped(Shape to) const {
    LATHE_CHECK(to.elements() == elements(), "{} to {}", to_string(shape), to_string(to));
    return Tensor{data, dtype, to};
  }
};

}  // namespace lathe
