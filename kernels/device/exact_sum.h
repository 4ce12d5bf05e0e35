// A sum of squares without rounding. Its bits depend neither on the order of the terms nor on who
// adds which: ranks may hold any parts of a gradient, and a network may add in any order.
//
// The square of a float is a 48-bit integer times 2^p with -298 <= p <= 208. So a sum of squares is
// an integer multiple of 2^-300, kept here in digits of 32 bits. Each digit has 64 bits, so that
// digits may be added (over threads and ranks) without carrying at once. The idea is Kulisch's long
// accumulator (Kulisch, "Computer Arithmetic and Validity", 2008).
#pragma once

#include <cstdint>

namespace lathe {

struct ExactSum {
  static constexpr int kDigits = 20, kDigitBits = 32;
  static constexpr int kLowestBit = -300;  // digits[i] counts 2^(32 i - 300)
  int64_t digits[kDigits] = {};
  int64_t not_finite = 0;  // terms that were infinite, NaN or too large for the digits

  static constexpr uint64_t kDigitMask = (uint64_t{1} << kDigitBits) - 1;

  // Adds value * 2^exponent, rounded toward minus infinity to a multiple of 2^kLowestBit. The
  // digits must have room for it: value * 2^exponent < 2^276.
  constexpr void add(int64_t value, int exponent) {
    const int place = exponent - kLowestBit;
    if (place < 0) {
      digits[0] += place <= -64 ? (value < 0 ? -1 : 0) : value >> -place;
      return;
    }
    const int first = place / kDigitBits, shift = place % kDigitBits;
    const uint64_t low = static_cast<uint64_t>(value) << shift;
    // The bits above `low`, with the value's sign.
    const int64_t high = shift == 0 ? (value < 0 ? -1 : 0) : value >> (64 - shift);
    digits[first] += static_cast<int64_t>(low & kDigitMask);
    digits[first + 1] += static_cast<int64_t>(low >> kDigitBits);
    digits[first + 2] += high;
  }

  // Adds a number that is not negative, such as the square of a float, which is exact in double.
  constexpr void add(double term) {
    const auto bits = __builtin_bit_cast(uint64_t, term);
    const int field = static_cast<int>(bits >> 52);
    if (field >= 1023 + 276) {
      ++not_finite;
      return;
    }
    const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
    const uint64_t mantissa = field == 0 ? fraction : fraction | uint64_t{1} << 52;
    add(static_cast<int64_t>(mantissa), (field == 0 ? 1 : field) - 1075);
  }

  constexpr void add(const ExactSum& other) {
    for (int i = 0; i < kDigits; ++i) digits[i] += other.digits[i];
    not_finite += other.not_finite;
  }

  // Gives every digit but the last a value in [0, 2^32), so that 2^31 such sums can be added.
  constexpr void carry() {
    int64_t carried = 0;
    for (int i = 0; i + 1 < kDigits; ++i) {
      const int64_t digit = digits[i] + carried;
      digits[i] = static_cast<int64_t>(static_cast<uint64_t>(digit) & kDigitMask);
      carried = digit >> kDigitBits;
    }
    digits[kDigits - 1] += carried;
  }

  // The nearest double, ties to even; NaN if a term was not finite. Carries first.
  constexpr double rounded();
};

// 2^exponent for -1022 <= exponent <= 1023.
constexpr double power_of_two(int exponent) {
  return __builtin_bit_cast(double, static_cast<uint64_t>(1023 + exponent) << 52);
}

constexpr double ExactSum::rounded() {
  carry();
  if (not_finite != 0) return __builtin_bit_cast(double, uint64_t{0x7ff8} << 48);
  int top = kDigits - 1;
  while (top > 0 && digits[top] == 0) --top;
  if (digits[top] == 0) return 0;
  const auto digit = [this](int i) { return i < 0 ? 0 : static_cast<uint64_t>(digits[i]); };
  // The 64 bits from the highest set bit down. The lowest of them is also set if any bit below is,
  // so that rounding these 64 bits rounds the whole sum.
  int zeros = 0;
  while (digit(top) << zeros >> (kDigitBits - 1) == 0) ++zeros;
  const uint64_t high = digit(top) << kDigitBits | digit(top - 1);
  uint64_t bits = high << zeros | digit(top - 2) << zeros >> kDigitBits;
  uint64_t below = digit(top - 2) << zeros & kDigitMask;
  for (int i = 0; i < top - 2; ++i) below |= digit(i);
  bits |= below != 0;
  return static_cast<double>(bits) * power_of_two(kDigitBits * (top - 1) + kLowestBit - zeros);
}

}  // namespace lathe
