#include "src/config_file.h"

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/io/toml.h"

namespace lathe {

namespace {

constexpr std::streamsize kMostBytes = 1 << 20;

// Numbers and booleans stand alone, all else in quotes.
bool is_text(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const bool number = type.starts_with("INT") || type.starts_with("FLOAT");
  return !number && !type.starts_with("BOOLEAN") && option.get_expected_min() > 0;
}

}  // namespace

std::string ConfigFile::to_config(const CLI::App* app, bool, bool, std::string) const {
  std::string text;
  for (const CLI::Option* option : app->get_options({})) {
    if (!option->get_configurable()) continue;
    std::string value = option->get_default_str();
    if (option->count() > 0) value = option->reduced_results().front();
    if (value.empty() && option->get_expected_min() == 0) value = "false";
    text += fmt::format("{}={}\n", option->get_single_name(),
                        is_text(*option) ? toml_string(value) : value);
  }
  return text;
}

std::vector<CLI::ConfigItem> ConfigFile::from_config(std::istream& input) const {
  const std::string file = "--config " + app_.get_config_ptr()->as<std::string>();
  std::string text(kMostBytes + 1, '\0');
  input.read(text.data(), kMostBytes + 1);
  if (input.gcount() > kMostBytes) throw UserError("{} has more than {} bytes", file, kMostBytes);
  text.resize(static_cast<size_t>(input.gcount()));
  std::vector<CLI::ConfigItem> items;
  for (const TomlEntry& entry : parse_flat_toml(text, file)) {
    const CLI::Option* option = app_.get_option_no_throw("--" + entry.key);
    if (option == nullptr || !option->get_configurable()) {
      throw UserError("{}, line {}: there is no key {} (see --help)", file, entry.line,
                      shortened(entry.key, kMostQuotedBytes));
    }
    items.push_back({.parents = {}, .name = entry.key, .inputs = {entry.value}});
  }
  return items;
}

}  // namespace lathe
