#include "src/io/toml.h"

#include <algorithm>
#include <cctype>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "src/io/json.h"
#include "src/io/json_text.h"

namespace lathe {

namespace {

constexpr std::string_view kBlanks = " \t";
constexpr std::string_view kNoSections = "sections are not known, keys stand alone";

bool is_key_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
}

// Parses one line from left to right.
class TomlLine {
 public:
  TomlLine(std::string_view text, std::string place) : rest_(text), place_(std::move(place)) {}

  // False for a line without an entry.
  bool parse(TomlEntry& entry) {
    skip_blanks();
    if (at_end()) return false;
    if (rest_.front() == '[') fail(kNoSections);
    entry.key = is_quote(rest_.front()) ? take_string() : take_while(is_key_character);
    skip_blanks();
    if (!entry.key.empty() && rest_.starts_with('.')) fail(kNoSections);
    if (entry.key.empty() || !rest_.starts_with('=')) fail("this is no line 'key = value'");
    rest_.remove_prefix(1);
    place_ += " --" + shortened(entry.key, kMostQuotedBytes);
    skip_blanks();
    entry.value = !rest_.empty() && is_quote(rest_.front()) ? take_string() : take_bare();
    skip_blanks();
    if (!at_end()) fail("has more than one value");
    return true;
  }

 private:
  static bool is_quote(char c) { return c == '"' || c == '\''; }
  bool at_end() const { return rest_.empty() || rest_.front() == '#'; }
  void skip_blanks() {
    rest_.remove_prefix(std::min(rest_.find_first_not_of(kBlanks), rest_.size()));
  }
  [[noreturn]] void fail(std::string_view what) const { throw UserError("{} {}", place_, what); }

  std::string take(size_t size) {
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }
  std::string take_while(bool (*belongs)(char)) {
    return take(std::find_if_not(rest_.begin(), rest_.end(), belongs) - rest_.begin());
  }

  // '...' literally, "..." with JSON's escapes, which are TOML's except \U.
  std::string take_string() {
    const char quote = rest_.front();
    if (rest_.starts_with(std::string(3, quote))) fail("has a string that spans several lines");
    size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote)
      end += quote == '"' && rest_[end] == '\\' ? 2 : 1;
    if (end >= rest_.size()) fail("has a string without its closing quote");
    const std::string quoted = take(end + 1);
    std::string text = quoted.substr(1, end - 1);
    if (quote == '"') {
      const auto parsed = parse_json(quoted, /*throws=*/false);
      if (!parsed.is_string()) fail("has an unknown escape in its string");
      text = parsed.get<std::string>();
    }
    if (text.find('\0') != std::string::npos) fail("has a NUL in its string");
    return text;
  }

  // A number or boolean; the flag itself checks which it accepts.
  std::string take_bare() {
    if (at_end()) fail("has no value");
    if (rest_.front() == '[' || rest_.front() == '{')
      fail("has a list or table, but takes one value");
    const std::string text = take(std::min(rest_.find_first_of(" \t#"), rest_.size()));
    const bool number =
        std::isdigit(static_cast<unsigned char>(text[0])) != 0 || text[0] == '-' || text[0] == '+';
    const bool word = text == "true" || text == "false" || text == "inf" || text == "nan";
    if (!number && !word) fail(fmt::format("is {}: a text needs quotes", json_quoted(text)));
    return text;
  }

  std::string_view rest_;
  std::string place_;  // the beginning of an error message
};

}  // namespace

std::vector<TomlEntry> parse_flat_toml(std::string_view text, const std::string& file) {
  if (!is_utf8(text)) throw UserError("{} is not UTF-8 text", file);
  std::vector<TomlEntry> entries;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    TomlEntry entry{.key = {}, .value = {}, .line = number};
    if (!TomlLine(line, fmt::format("{}, line {}:", file, number)).parse(entry)) continue;
    for (const TomlEntry& other : entries) {
      if (other.key != entry.key) continue;
      throw UserError("{}, line {}: --{} is in line {} already: remove one", file, number,
                      shortened(entry.key, kMostQuotedBytes), other.line);
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string toml_string(std::string_view text) {
  const std::string quoted = nlohmann::json(text).dump();
  std::string result;  // TOML escapes one more character
  for (const char c : quoted) result += c == '\x7f' ? "\\u007f" : std::string(1, c);
  return result;
}

}  // namespace lathe
