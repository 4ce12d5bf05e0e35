// Reading the flags of a program.
#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <sstream>
#include <string>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"

namespace lathe {

// A number from low to high; NaN and infinities are none, although CLI11's own ranges let NaN pass.
inline CLI::Validator finite_in(double low, double high) {
  const std::string range =
      high == HUGE_VAL ? fmt::format("at least {}", low) : fmt::format("from {} to {}", low, high);
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool fits = CLI::detail::lexical_cast(text, value) && std::isfinite(value) &&
                          value >= low && value <= high;
        return fits ? std::string() : fmt::format("'{}' is no finite number {}", text, range);
      },
      "FLOAT " + range);
}
inline CLI::Validator finite_from(double low) {
  return finite_in(low, HUGE_VAL);
}

// CLI11 takes -1 for the largest unsigned number.
inline CLI::Validator not_negative() {
  return CLI::Validator(
      [](const std::string& text) {
        return text.starts_with('-') ? "'" + text + "' is negative" : std::string();
      },
      "AT LEAST 0");
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

}  // namespace lathe
