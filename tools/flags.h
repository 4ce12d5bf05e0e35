// Reading the flags of a program.
#pragma once

#include <CLI/CLI.hpp>
#include <iostream>

#include "kernels/device/error.h"

namespace lathe {

// Parses the command line. Returns false after printing the help that was asked for; throws
// UserError on an unknown flag or a value that does not fit.
inline bool parse_flags(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      throw UserError("{} (see {} --help)", error.what(), app.get_name());
    }
    app.exit(error, std::cout, std::cerr);
    return false;
  }
  return true;
}

}  // namespace lathe
