#include "kernels/cuda_on_cpu/product.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cuda_on_cpu/tensor_cores.h"

namespace lathe::cuda_on_cpu {

namespace {

// The compiler maps it to the machine's vectors.
using Lanes [[gnu::vector_size(64)]] = float;
constexpr int kLanes = 16, kRegisters = kTileRows / kLanes, kColumnsAtOnce = 4;

float element(const MatrixView& matrix, int64_t row, int64_t column) {
  const int64_t at = matrix.transpose ? row * matrix.ld + column : column * matrix.ld + row;
  if (!matrix.is_bf16) return static_cast<const float*>(matrix.data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(matrix.data)[at];
  return std::bit_cast<float>(bits << 16);
}

// packed[k][row]: the rows of op(a) that a tile needs, zeros beyond its end.
void pack_a(const Product& p, int64_t row, int64_t k0, int64_t k1, float* packed) {
  const int64_t rows = std::min(kTileRows, p.m - row);
  std::fill_n(packed, (k1 - k0) * kTileRows, 0.0f);
  if (p.a.transpose) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = k0; k < k1; ++k) packed[(k - k0) * kTileRows + i] = element(p.a, row + i, k);
  } else {
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t i = 0; i < rows; ++i)
        packed[(k - k0) * kTileRows + i] = element(p.a, row + i, k);
  }
}

// packed[column / 4][k][column % 4]
void pack_b(const Product& p, int64_t column, int64_t k0, int64_t k1, float* packed) {
  const int64_t columns = std::min(kTileColumns, p.n - column), depth = k1 - k0;
  std::fill_n(packed, depth * kTileColumns, 0.0f);
  const auto at = [&](int64_t j, int64_t k) -> float& {
    return packed[((j / kColumnsAtOnce) * depth + (k - k0)) * kColumnsAtOnce + j % kColumnsAtOnce];
  };
  if (p.b.transpose) {
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t j = 0; j < columns; ++j) at(j, k) = element(p.b, k, column + j);
  } else {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t k = k0; k < k1; ++k) at(j, k) = element(p.b, k, column + j);
  }
}

using Sums = Lanes[kColumnsAtOnce][kRegisters];

// The sums over k0 <= k < k1 of 32 rows and 4 columns, added to `sum`.
void multiply(const float* a, const float* b, int64_t k0, int64_t k1, Sums& sum) {
  for (int64_t k = k0; k < k1; ++k) {
    const Lanes* rows = reinterpret_cast<const Lanes*>(a + k * kTileRows);
    for (int j = 0; j < kColumnsAtOnce; ++j)
      for (int r = 0; r < kRegisters; ++r) sum[j][r] += rows[r] * b[k * kColumnsAtOnce + j];
  }
}

// Adds the sums over `depth` k, computed in registers, to the tile's columns.
void add_block(const float* a, const float* b, int64_t depth, float* tile) {
  Sums sum = {};
  multiply(a, b, 0, depth, sum);
  for (int j = 0; j < kColumnsAtOnce; ++j)
    for (int r = 0; r < kRegisters; ++r)
      for (int i = 0; i < kLanes; ++i) tile[j * kTileRows + r * kLanes + i] += sum[j][r][i];
}

// The same as tensor cores add, `step` k at a time.
void add_steps(const float* a, const float* b, int64_t depth, int64_t step, float* tile) {
  for (int64_t k = 0; k < depth; k += step) {
    Sums sum = {};
    multiply(a, b, k, std::min(depth, k + step), sum);
    for (int j = 0; j < kColumnsAtOnce; ++j)
      for (int r = 0; r < kRegisters; ++r)
        for (int i = 0; i < kLanes; ++i) {
          float& total = tile[j * kTileRows + r * kLanes + i];
          total = truncated_sum(total, sum[j][r][i]);
        }
  }
}

// Memory for packed operands, reused from call to call, aligned for Lanes.
struct Packed {
  std::vector<Lanes> memory;
  float* of(int64_t floats) {
    const auto lanes = static_cast<size_t>((floats + kLanes - 1) / kLanes);
    if (memory.size() < lanes) memory.resize(lanes);
    return reinterpret_cast<float*>(memory.data());
  }
};

}  // namespace

void product_tile(const Product& p, int64_t row, int64_t column, int64_t k0, int64_t k1,
                  float* tile) {
  static Packed a_memory, b_memory;  // one OS thread runs the device
  std::fill_n(tile, kTile, 0.0f);
  const int64_t columns = std::min(kTileColumns, p.n - column);
  for (int64_t first = k0; first < k1; first += p.chunk) {
    const int64_t last = std::min(k1, first + p.chunk), depth = last - first;
    float* const a = a_memory.of(depth * kTileRows);
    float* const b = b_memory.of(depth * kTileColumns);
    pack_a(p, row, first, last, a);
    pack_b(p, column, first, last, b);
    const int64_t step = 8 + std::bit_width(static_cast<uint64_t>(p.chunk)) % 9;
    for (int64_t j = 0; j < columns; j += kColumnsAtOnce) {
      p.a.is_bf16 ? add_steps(a, b + j * depth, depth, step, tile + j * kTileRows)
                  : add_block(a, b + j * depth, depth, tile + j * kTileRows);
    }
  }
}

}  // namespace lathe::cuda_on_cpu
