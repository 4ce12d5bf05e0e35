#include "kernels/cuda/ptx.cuh"

#include "kernels/cuda_on_cpu/runtime.h"
#include "kernels/cuda_on_cpu/tensor_cores.h"

namespace lathe::cuda::ptx::detail {

namespace {

float low(uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}
float high(uint32_t pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

}  // namespace

void load_matrices(void* const* records, unsigned) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<LoadMatrix*>(records[lane]);
    if (reinterpret_cast<uintptr_t>(record.row) % 16 != 0) {
      cuda_on_cpu::fail_kernel("ldmatrix: an address is not a multiple of 16");
    }
    if (!cuda_on_cpu::is_shared_memory(record.row, 16)) {
      cuda_on_cpu::fail_kernel("ldmatrix: an address is not in shared memory");
    }
    std::memcpy(matrices[lane / 8][lane % 8], record.row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<LoadMatrix*>(records[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint32_t first = record.transpose ? matrices[i][column][row] : matrices[i][row][column];
      const uint32_t second =
          record.transpose ? matrices[i][column + 1][row] : matrices[i][row][column + 1];
      record.r[i] = first | second << 16;
    }
  }
}

void multiply_add(void* const* records, unsigned) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<MultiplyAdd*>(records[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8, c = column + i / 2 * 8;
      a[r][c] = low(record.a[i]), a[r][c + 1] = high(record.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[column + 8 * i][row] = low(record.b[i]), b[column + 8 * i + 1][row] = high(record.b[i]);
    }
    for (int i = 0; i < 4; ++i) d[row + i / 2 * 8][column + i % 2] = record.d[i];
  }
  constexpr int kStep = 8;  // as on an A100
  for (int m = 0; m < 16; ++m) {
    for (int first = 0; first < 16; first += kStep) {
      float sum[8] = {};
      for (int k = first; k < first + kStep; ++k) {
        for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * b[k][n];
      }
      for (int n = 0; n < 8; ++n) d[m][n] = cuda_on_cpu::truncated_sum(d[m][n], sum[n]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<MultiplyAdd*>(records[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) record.d[i] = d[row + i / 2 * 8][column + i % 2];
  }
}

}  // namespace lathe::cuda::ptx::detail
