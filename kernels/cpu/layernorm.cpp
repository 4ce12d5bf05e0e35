// Layer normalization (Ba, Kiros and Hinton, 2016), with the residual addition and its dropout.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/define_operation.h"
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sums.h"
#include "kernels/cpu/vecmath.h"
#include "kernels/device/round.h"

namespace lathe::cpu {

namespace {

constexpr double kEpsilon = 1e-5;

// The first mask element of the micro-batch; only dropout needs T.
uint64_t first_element(const DropoutMask& mask, const Tensor& x_btc) {
  if (!mask) return 0;
  LATHE_CHECK(x_btc.shape.rank == 3);
  return mask.first_sequence() * static_cast<uint64_t>(x_btc.shape[1] * x_btc.shape[2]);
}

// out = residual + x, with x times the mask if there is one.
template <typename T>
void add_residual(const T* residual, const T* x, const DropoutMask& mask, uint64_t element,
                  int64_t channels, T* out) {
  using A = Accumulator<T>;
  if (!mask) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c)
      store(out[c], static_cast<A>(residual[c]) + static_cast<A>(x[c]));
    return;
  }
  A scale[kMaskChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kMaskChunk) {
    const int64_t count = std::min(kMaskChunk, channels - c0);
    mask.scales(element + static_cast<uint64_t>(c0), count, scale);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A kept = static_cast<A>(x[c0 + i]) * scale[i];
      store(out[c0 + i], static_cast<A>(residual[c0 + i]) + kept);
    }
  }
}

template <typename T>
void normalise(const T* x, const T* weight, const T* bias, Accumulator<T> mean, Accumulator<T> rstd,
               int64_t channels, T* out) {
  using A = Accumulator<T>;
  if (bias) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A hat = (static_cast<A>(x[c]) - mean) * rstd;
      store(out[c], hat * static_cast<A>(weight[c]) + static_cast<A>(bias[c]));
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A hat = (static_cast<A>(x[c]) - mean) * rstd;
      store(out[c], hat * static_cast<A>(weight[c]));
    }
  }
}

template <typename T>
void check_forward(const LayerNormForward& args, int64_t rows, int64_t channels) {
  using A = Accumulator<T>;
  check_matrix(args.residual_in_btc, dtype_of<T>, rows, channels, "residual_in");
  check_matrix(args.out_btc, dtype_of<T>, rows, channels, "out");
  check_vector(args.mean_bt, dtype_of<A>, rows, "mean");
  check_vector(args.rstd_bt, dtype_of<A>, rows, "rstd");
  check_vector(args.weight_c, dtype_of<T>, channels, "weight");
  if (args.bias_c) check_vector(args.bias_c, dtype_of<T>, channels, "bias");
  if (!args.x_btc) return;
  check_matrix(args.x_btc, dtype_of<T>, rows, channels, "x");
  check_matrix(args.residual_out_btc, dtype_of<T>, rows, channels, "residual_out");
}

// One thread sums dweight and dbias over rows_per_partial() rows into a partial of its own; then
// the partials are added in order.
constexpr int64_t kMaxPartials = 64;
int64_t rows_per_partial(int64_t rows) {
  return std::max<int64_t>(16, ceil_div(rows, kMaxPartials));
}
int64_t partial_count(int64_t rows) {
  return ceil_div(rows, rows_per_partial(rows));
}

template <typename T>
struct BackwardRow {
  using A = Accumulator<T>;
  const T *dout, *x, *weight;
  T *d_residual, *dx;  // dx may be null
  A mean, rstd;
  bool fresh;
  uint64_t element;
};

template <typename T>
void backward_row(const BackwardRow<T>& r, const DropoutMask& mask, int64_t channels,
                  Accumulator<T>* dweight, Accumulator<T>* dbias) {
  using A = Accumulator<T>;
  const A mean = r.mean, rstd = r.rstd, size = static_cast<A>(channels);
  const T *dout = r.dout, *x = r.x, *weight = r.weight;
  T* d_residual = r.d_residual;
  const A mean_dnorm = sum_of<A>(channels,
                                 [dout, weight](int64_t c) {
                                   return static_cast<A>(dout[c]) * static_cast<A>(weight[c]);
                                 }) /
                       size;
  const A mean_dnorm_hat =
      sum_of<A>(channels,
                [=](int64_t c) {
                  const A hat = (static_cast<A>(x[c]) - mean) * rstd;
                  return static_cast<A>(dout[c]) * static_cast<A>(weight[c]) * hat;
                }) /
      size;
  if (r.fresh) std::fill_n(d_residual, channels, static_cast<T>(A(0)));
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const A hat = (static_cast<A>(x[c]) - mean) * rstd, d = static_cast<A>(dout[c]);
    dweight[c] += d * hat;
    dbias[c] += d;
    const A gradient = rstd * (d * static_cast<A>(weight[c]) - mean_dnorm - hat * mean_dnorm_hat);
    store(d_residual[c], static_cast<A>(d_residual[c]) + gradient);
  }
  if (!mask || !r.dx) return;
  A scale[kMaskChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kMaskChunk) {
    const int64_t count = std::min(kMaskChunk, channels - c0);
    mask.scales(r.element + static_cast<uint64_t>(c0), count, scale);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      store(r.dx[c0 + i], static_cast<A>(r.d_residual[c0 + i]) * scale[i]);
  }
}

template <typename A>
void add_partials(const A* partials, int64_t count, int64_t stride, int64_t channels,
                  bool accumulate, A* out) {
  constexpr int64_t kChannelBlock = 64;
  parallel_for(ceil_div(channels, kChannelBlock), count * channels, [&](int64_t b) {
    const int64_t c0 = b * kChannelBlock, width = std::min(kChannelBlock, channels - c0);
    A sum[kChannelBlock] = {};
    for (int64_t p = 0; p < count; ++p) {
      const A* partial = partials + p * stride + c0;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) sum[i] += partial[i];
    }
    for (int64_t i = 0; i < width; ++i) out[c0 + i] = accumulate ? out[c0 + i] + sum[i] : sum[i];
  });
}

template <typename T>
void check_backward(const LayerNormBackward& args, int64_t rows, int64_t channels) {
  using A = Accumulator<T>;
  check_matrix(args.dout_btc, dtype_of<T>, rows, channels, "dout");
  check_matrix(args.d_residual_btc, dtype_of<T>, rows, channels, "d_residual");
  check_matrix(args.residual_out_btc, dtype_of<T>, rows, channels, "residual_out");
  check_vector(args.mean_bt, dtype_of<A>, rows, "mean");
  check_vector(args.rstd_bt, dtype_of<A>, rows, "rstd");
  check_vector(args.weight_c, dtype_of<T>, channels, "weight");
  check_vector(args.dweight_c, dtype_of<A>, channels, "dweight");
  if (args.dbias_c) check_vector(args.dbias_c, dtype_of<A>, channels, "dbias");
  if (args.dx_sums_c) check_vector(args.dx_sums_c, dtype_of<A>, channels, "dx_sums");
  if (args.dropout.p > 0) check_matrix(args.dx_btc, dtype_of<T>, rows, channels, "dx");
  LATHE_CHECK(args.dropout.p > 0 || !args.dx_btc, "without dropout dx is d_residual");
}

}  // namespace

template <typename T>
void compute(const LayerNormForward& args, MatmulContext&, const Tensor&) {
  using A = Accumulator<T>;
  const int64_t channels = columns_of(args.residual_in_btc), rows = rows_of(args.residual_in_btc);
  check_forward<T>(args, rows, channels);
  const DropoutMask mask(args.x_btc ? args.dropout : Dropout{});
  const uint64_t element0 = first_element(mask, args.x_btc);
  const T *x = args.x_btc.as<T>(), *residual_in = args.residual_in_btc.as<T>();
  const T *weight = args.weight_c.as<T>(), *bias = args.bias_c.as<T>();
  T *out = args.out_btc.as<T>(), *residual_out = args.residual_out_btc.as<T>();
  A *means = args.mean_bt.as<A>(), *rstds = args.rstd_bt.as<A>();
  parallel_for(rows, rows * channels, [&](int64_t n) {
    const int64_t at = n * channels;
    const T* row = residual_in + at;
    if (x) {
      add_residual(row, x + at, mask, element0 + static_cast<uint64_t>(at), channels,
                   residual_out + at);
      row = residual_out + at;
    }
    const A size = static_cast<A>(channels);
    const A mean = sum_of<A>(channels, [row](int64_t c) { return static_cast<A>(row[c]); }) / size;
    const A variance = sum_of<A>(channels,
                                 [row, mean](int64_t c) {
                                   const A centred = static_cast<A>(row[c]) - mean;
                                   return centred * centred;
                                 }) /
                       size;
    const A rstd = A(1) / std::sqrt(variance + static_cast<A>(kEpsilon));
    means[n] = mean;
    rstds[n] = rstd;
    normalise(row, weight, bias, mean, rstd, channels, out + at);
  });
}

template <typename T>
size_t workspace_of(const LayerNormBackward& args, MatmulContext&) {
  const int64_t channels = columns_of(args.dout_btc), rows = rows_of(args.dout_btc);
  return static_cast<size_t>(partial_count(rows) * 2 * channels) * sizeof(Accumulator<T>);
}

template <typename T>
void compute(const LayerNormBackward& args, MatmulContext& matmul, const Tensor& workspace) {
  using A = Accumulator<T>;
  const int64_t channels = columns_of(args.dout_btc), rows = rows_of(args.dout_btc);
  check_backward<T>(args, rows, channels);
  check_workspace(workspace, workspace_of<T>(args, matmul));
  const DropoutMask mask(args.dropout);
  const uint64_t element0 = first_element(mask, args.dx_btc);
  const T *dout = args.dout_btc.as<T>(), *x = args.residual_out_btc.as<T>();
  T *d_residual = args.d_residual_btc.as<T>(), *dx = args.dx_btc.as<T>();
  const A *means = args.mean_bt.as<A>(), *rstds = args.rstd_bt.as<A>();
  auto* partials = static_cast<A*>(workspace.data);
  const int64_t count = partial_count(rows), block = rows_per_partial(rows);
  parallel_for(count, rows * channels, [&](int64_t p) {
    A *dweight = partials + 2 * p * channels, *dbias = dweight + channels;
    std::fill_n(dweight, 2 * channels, A(0));
    for (int64_t n = p * block; n < std::min(rows, (p + 1) * block); ++n) {
      const int64_t at = n * channels;
      const BackwardRow<T> row{dout + at,
                               x + at,
                               args.weight_c.as<T>(),
                               d_residual + at,
                               dx ? dx + at : nullptr,
                               means[n],
                               rstds[n],
                               args.fresh,
                               element0 + static_cast<uint64_t>(at)};
      backward_row(row, mask, channels, dweight, dbias);
    }
  });
  add_partials(partials, count, 2 * channels, channels, args.accumulate, args.dweight_c.as<A>());
  if (args.dbias_c)
    add_partials(partials + channels, count, 2 * channels, channels, args.accumulate,
                 args.dbias_c.as<A>());
  if (args.dx_sums_c)
    column_sums(dx ? dx : d_residual, rows, channels, args.accumulate, args.dx_sums_c.as<A>());
}

LATHE_CPU_OPERATION(LayerNormForward)
LATHE_CPU_OPERATION(LayerNormBackward)

}  // namespace lathe::cpu
