// Number types: the storage types of tensors, and bf16 as a C++ type.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lathe {

// bfloat16: the upper half of a float. Conversion rounds to nearest even and keeps NaN a NaN, as
// VCVTNEPS2BF16 and CUDA's __float2bfloat16_rn do (subnormals are kept). Same layout as
// __nv_bfloat16.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40;
    bits = static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
static_assert(sizeof(bf16) == 2);

// The bits of a float rounded to one of its two bf16 neighbours at random: away from zero with the
// probability that makes the mean equal the value. `random` is uniform in [0, 2^16). Infinities
// and NaN are unchanged.
constexpr uint16_t stochastic_bf16_bits(uint32_t float_bits, uint32_t random) {
  const bool finite = (float_bits & 0x7f800000) != 0x7f800000;
  const uint32_t quiet = (float_bits & 0x007fffff) != 0 ? 0x00400000 : 0;
  return static_cast<uint16_t>((finite ? float_bits + random : float_bits | quiet) >> 16);
}

enum class DType : uint8_t { fp32, bf16, fp64, int32, int64, uint8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::fp64:
      return 8;
    case DType::int32:
      return 4;
    case DType::int64:
      return 8;
    case DType::uint8:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::fp64:
      return "fp64";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
  }
  return "?";
}

template <typename T>
struct dtype_of_t;
template <>
struct dtype_of_t<float> {
  static constexpr DType value = DType::fp32;
};
template <>
struct dtype_of_t<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of_t<double> {
  static constexpr DType value = DType::fp64;
};
template <>
struct dtype_of_t<int32_t> {
  static constexpr DType value = DType::int32;
};
template <>
struct dtype_of_t<int64_t> {
  static constexpr DType value = DType::int64;
};
template <>
struct dtype_of_t<uint8_t> {
  static constexpr DType value = DType::uint8;
};
template <typename T>
inline constexpr DType dtype_of = dtype_of_t<T>::value;

// The type in which values stored as T are accumulated, and the type of statistics, losses and
// weight gradients: float for fp32 and bf16, double for fp64.
constexpr DType accumulator_of(DType dtype) {
  return dtype == DType::fp64 ? DType::fp64 : DType::fp32;
}
template <typename T>
struct accumulator_t {
  using type = float;
};
template <>
struct accumulator_t<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename accumulator_t<T>::type;

}  // namespace lathe
