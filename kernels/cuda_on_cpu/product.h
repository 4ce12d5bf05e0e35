// Column-major matrix products in plain C++, for the stand-in for cuBLASLt.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace lathe::cuda_on_cpu {

// A column-major matrix of fp32 or bf16, to be read as its transpose if `transpose` is set.
struct MatrixView {
  const void* data = nullptr;
  int64_t ld = 0;
  bool is_bf16 = false, transpose = false;
};

// The work of one product: d [m, n] = op(a) [m, k] op(b) [k, n].
struct Product {
  MatrixView a, b;
  int64_t m = 0, n = 0, k = 0;
  // The length of the pieces of k that are summed first and then added in order. Within a piece,
  // bf16 products are added 8 to 16 at a time, as tensor cores do; how many depends on `chunk`.
  int64_t chunk = 0;
};

inline constexpr int64_t kTileRows = 32, kTileColumns = 128;
inline constexpr int64_t kTile = kTileRows * kTileColumns;

// The sums over k0 <= k < k1 of the tile at (row, column), column-major in `tile`, which has room
// for kTile floats with leading dimension kTileRows. Elements outside d are garbage.
void product_tile(const Product& product, int64_t row, int64_t column, int64_t k0, int64_t k1,
                  float* tile);

}  // namespace lathe::cuda_on_cpu
