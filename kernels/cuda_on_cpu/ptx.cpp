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

namespace {

// Element (row, column) of a tile whose rows of 128 bytes are permuted in chunks of 16 bytes.
float element(const unsigned char* tile, int row, int column) {
  const int chunk = column / 8 ^ row % 8;
  uint16_t bits = 0;
  std::memcpy(&bits, tile + row * 128 + chunk * 16 + column % 8 * 2, sizeof(bits));
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// A warp's 16 rows of a product.
void multiply_warpgroup(void* const* records, unsigned) {
  constexpr int kRows = 16, kK = 16, kColumns = 64, kTileBytes = 64 * 128;
  const auto& first = *static_cast<Wgmma*>(records[0]);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  for (const unsigned char* tile : {first.tile, first.a ? first.tile : first.a_tile}) {
    if (!cuda_on_cpu::is_shared_memory(tile, kTileBytes))
      cuda_on_cpu::fail_kernel("a matrix of wgmma is not in shared memory");
  }
  float a[kRows][kK], b[kK][kColumns], d[kRows][kColumns];
  for (int k = 0; k < kK; ++k) {
    for (int n = 0; n < kColumns; ++n) {
      // With a in registers, b is [16, 64]; otherwise its transpose [64, 16] is in the tile.
      b[k][n] = first.a ? element(first.tile, first.row + k, first.column + n)
                        : element(first.tile, first.row + n, first.column + k);
    }
    for (int m = 0; m < kRows && !first.a; ++m)
      a[m][k] = element(first.a_tile, first.a_row + 16 * warp + m, first.a_column + k);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<Wgmma*>(records[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4 && record.a; ++i) {
      const int r = row + i % 2 * 8, c = column + i / 2 * 8;
      a[r][c] = low(record.a[i]), a[r][c + 1] = high(record.a[i]);
    }
    for (int i = 0; i < kColumns / 2; ++i)
      d[row + i / 2 % 2 * 8][i / 4 * 8 + column + i % 2] =
          record.add ? record.d[i / 4][i % 4] : 0.0f;
  }
  for (int m = 0; m < kRows; ++m) {
    float sum[kColumns] = {};
    for (int k = 0; k < kK; ++k)
      for (int n = 0; n < kColumns; ++n) sum[n] += a[m][k] * b[k][n];
    for (int n = 0; n < kColumns; ++n) d[m][n] = cuda_on_cpu::truncated_sum(d[m][n], sum[n]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& record = *static_cast<Wgmma*>(records[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < kColumns / 2; ++i)
      record.d[i / 4][i % 4] = d[row + i / 2 % 2 * 8][i / 4 * 8 + column + i % 2];
  }
}

}  // namespace

void check_matrix_descriptor(const void* tile) {
  if (reinterpret_cast<uintptr_t>(tile) % 1024 != 0)
    cuda_on_cpu::fail_kernel("a matrix of wgmma does not begin at a multiple of 1024 bytes");
}
void wgmma_m64n64k16(const Wgmma& product, const Site& site) {
  static_assert(sizeof(product) <= cuda_on_cpu::kLateRecordBytes);
  cuda_on_cpu::enqueue_wgmma(&product, sizeof(product), multiply_warpgroup, site);
}
void warpgroup_commit() {
  cuda_on_cpu::commit_wgmma();
}
void warpgroup_wait(int pending, const Site& site) {
  cuda_on_cpu::wait_for_wgmma(pending, site);
}

}  // namespace lathe::cuda::ptx::detail
