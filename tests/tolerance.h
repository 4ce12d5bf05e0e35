// The one tolerance rule of the tests, taken from FlashAttention: the error against a reference in
// double is at most twice the error of a plain implementation in the same number type, which rounds
// to the storage type after each operation. The rule holds for the largest error over the tensor
// and for the root mean square. The floor is 8 ulp (fp32, fp64) or 1 ulp (bf16) of the reference's
// largest magnitude.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/dtype.h"

namespace lathe::testing {

// The distance between adjacent values of T around `magnitude`; 0 for 0.
template <typename T>
double ulp_at(double magnitude) {
  constexpr int kMantissaBits = dtype_of<T> == DType::bf16   ? 7
                                : dtype_of<T> == DType::fp32 ? 23
                                                             : 52;
  if (magnitude == 0) return 0;
  return std::ldexp(1.0, std::ilogb(magnitude) - kMantissaBits);
}

struct ErrorNorms {
  double max = 0, rms = 0;
  size_t worst = 0;  // index of the largest error
};

// A NaN where the other value is a number is an infinite error. Equal infinities are no error.
template <typename T>
ErrorNorms error_norms(std::span<const T> values, std::span<const double> reference) {
  ErrorNorms norms;
  double squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double v = static_cast<double>(values[i]), r = reference[i];
    double e = std::fabs(v - r);
    if (v == r || (std::isnan(v) && std::isnan(r))) e = 0;
    if (std::isnan(e)) e = INFINITY;
    squares += e * e;
    if (e > norms.max) norms.max = e, norms.worst = i;
  }
  norms.rms = values.empty() ? 0 : std::sqrt(squares / static_cast<double>(values.size()));
  return norms;
}

template <typename T>
::testing::AssertionResult is_close(std::span<const T> actual, std::span<const double> reference,
                                    std::span<const T> plain) {
  if (actual.size() != reference.size() || actual.size() != plain.size())
    return ::testing::AssertionFailure()
           << "sizes differ: " << actual.size() << ", " << reference.size() << ", " << plain.size();
  double magnitude = 0;
  for (double r : reference) magnitude = std::max(magnitude, std::isfinite(r) ? std::fabs(r) : 0);
  const double floor = (dtype_of<T> == DType::bf16 ? 1 : 8) * ulp_at<T>(magnitude);
  const ErrorNorms ours = error_norms(actual, reference), theirs = error_norms(plain, reference);
  if (ours.max <= std::max(2 * theirs.max, floor) && ours.rms <= std::max(2 * theirs.rms, floor))
    return ::testing::AssertionSuccess();
  const size_t i = ours.worst;
  return ::testing::AssertionFailure()
         << "error max " << ours.max << " rms " << ours.rms << ", plain max " << theirs.max
         << " rms " << theirs.rms << ", floor " << floor << "; worst at " << i << ": "
         << static_cast<double>(actual[i]) << ", reference " << reference[i] << ", plain "
         << static_cast<double>(plain[i]);
}

// EXPECTs the rule. `what` names the tensor in the message.
template <typename T>
void expect_close(const std::vector<T>& actual, const std::vector<double>& reference,
                  const std::vector<T>& plain, const std::string& what = {}) {
  EXPECT_TRUE(is_close<T>(actual, reference, plain)) << what;
}

}  // namespace lathe::testing
