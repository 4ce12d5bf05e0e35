// Reading the flags of a program: CLI11, with numbers and booleans read strictly. CLI11's own
// reading takes 010 for 8, clamps what is beyond 64 bits and lets NaN pass.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"

namespace lathe {

// All of the text as a number of type T: decimal digits, for floating-point types with point and
// exponent too. Nothing where it is no such number, is not finite, or does not fit T.
template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) return {};
  }
  return value;
}

inline std::optional<bool> parse_boolean(std::string_view text) {
  for (const char* yes : {"1", "true", "yes", "on"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"0", "false", "no", "off"}) {
    if (text == no) return false;
  }
  return {};
}

// The number as flags and configuration files have it: the fewest digits that read back.
template <typename T>
std::string number_text(T value) {
  return fmt::format("{}", value);
}

// For CLI::Option::transform(): a number from low to high, of which the option's result becomes
// number_text() whatever way it was written.
template <typename T>
CLI::Validator number_in(T low, T high) {
  constexpr bool kWhole = std::is_integral_v<T>;
  const std::string range = !kWhole && high == std::numeric_limits<T>::max()
                                ? fmt::format("from {} on", low)
                                : fmt::format("from {} to {}", low, high);
  const auto check = [=](std::string& text) {
    const std::optional<T> number = parse_number<T>(text);
    if (!number || *number < low || *number > high) {
      return fmt::format("'{}' is no {} {}", text,
                         kWhole ? "whole number in decimal digits" : "finite number", range);
    }
    text = number_text(*number);
    return std::string();
  };
  return CLI::Validator(check, range);
}

// A flag with such a number.
template <typename T>
CLI::Option* add_number(CLI::App& app, const std::string& name, T& value,
                        std::type_identity_t<T> low, std::type_identity_t<T> high,
                        const std::string& description) {
  return app
      .add_option_function<std::string>(
          name, [&value](const std::string& text) { value = *parse_number<T>(text); }, description)
      ->transform(number_in<T>(low, high))
      ->type_name(std::is_integral_v<T> ? "INT" : "FLOAT")
      ->default_str(number_text(value));
}

// The result is `yes` or `no`.
inline CLI::Validator boolean_as(const std::string& yes, const std::string& no) {
  return CLI::Validator(
      [=](std::string& text) {
        const std::optional<bool> value = parse_boolean(text);
        if (!value) return "'" + text + "' is neither true nor false";
        text = *value ? yes : no;
        return std::string();
      },
      "");
}

// A flag that is followed by true or false.
inline CLI::Option* add_boolean(CLI::App& app, const std::string& name, bool& value,
                                const std::string& description) {
  return app
      .add_option_function<std::string>(
          name, [&value](const std::string& text) { value = text == "1"; }, description)
      ->transform(boolean_as("1", "0"))
      ->type_name("BOOLEAN")
      ->default_str(value ? "1" : "0");
}

// A flag that stands alone and means true.
inline CLI::Option* add_switch(CLI::App& app, const std::string& name, bool& value,
                               const std::string& description) {
  return app.add_flag(name, value, description)->transform(boolean_as("true", "false"));
}

// Parses the command line. Returns false after printing the help that was asked for; throws
// UserError on an unknown flag or a value that does not fit.
inline bool parse_flags(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      throw UserError("{} (see {} --help)", shortened(error.what(), kMostReportedBytes),
                      app.get_name());
    }
    std::ostringstream text;
    app.exit(error, text, text);
    print_out(text.str());
    return false;
  }
  return true;
}

// A flag that would do nothing is an error. `why` ends a sentence about it: "does nothing WHY".
inline void refuse_idle(const CLI::App& app, const std::string& name, bool idle,
                        std::string_view why) {
  if (idle && app.count(name) > 0) throw UserError("{} does nothing {}: take it away", name, why);
}

}  // namespace lathe
