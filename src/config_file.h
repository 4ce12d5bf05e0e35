// The file that --config reads and a run keeps as config.toml: flat TOML, keys named as the flags.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace lathe {

// For CLI::App::config_formatter(). CLI11's own takes a # in quotes for a comment, and writes no
// text that has one, or a newline, so that it reads back.
class ConfigFile final : public CLI::Config {
 public:
  explicit ConfigFile(const CLI::App& app) : app_(app) {}

  // Every flag but --config and --help with its value, one a line.
  std::string to_config(const CLI::App* app, bool, bool, std::string) const override;
  // UserError that names the file and the line, also for a key that is no flag.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

 private:
  const CLI::App& app_;
};

}  // namespace lathe
