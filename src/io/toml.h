// The part of TOML 1.0 (toml.io) that a configuration file has: a "key = value" a line, comments.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct TomlEntry {
  std::string key;
  std::string value;  // a string's text, or a number or boolean as it was written
  int line = 0;
};

// Throws UserError that names `file`, the line and the key: other syntax, sections, lists, tables,
// strings of several lines or with a NUL in them, a key that is there twice, text that is not
// UTF-8.
std::vector<TomlEntry> parse_flat_toml(std::string_view text, const std::string& file);

// Valid UTF-8 as a string on one line, with its quotes.
std::string toml_string(std::string_view text);

}  // namespace lathe
