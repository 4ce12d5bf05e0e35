// What the small tools share: reading flags, writing a file.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

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

// Writes beside the final name and renames, so that a failed write leaves the old file whole.
// Throws UserError when the file cannot be written.
inline void write_file(const std::filesystem::path& path, const std::string& content) {
  const std::filesystem::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file << content;
  file.close();
  std::error_code failed;
  if (file) std::filesystem::rename(partial, path, failed);
  if (!file || failed) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw UserError("cannot write {}: check that its directory exists, has room and may be written",
                    path.string());
  }
}

}  // namespace lathe
