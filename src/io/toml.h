// The subset of TOML 1.0 (toml.io) that a configuration file uses: a "key = value" per line, and
// comments.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct TomlEntry {
  std::string key;
  std::string value;  // a string's text, or a number or boolean as written
  int line = 0;
};

// Throws UserError that names `file`, the line and the key on other syntax: sections, lists,
// tables, strings that span lines or contain a NUL, duplicate keys, text that is not UTF-8.
std::vector<TomlEntry> parse_flat_toml(std::string_view text, const std::string& file);

// A valid UTF-8 text as a TOML string on one line, with its quotes.
std::string toml_string(std::string_view text);

}  // namespace lathe
