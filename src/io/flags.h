// The flags of a program: what its command line, and for train its configuration file, may say.
// Numbers and booleans are read strictly. CLI11, which takes the command line apart, would read 010
// as 8, clamp what does not fit 64 bits and accept NaN.
#pragma once

#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/device/error.h"

namespace lathe {

// All of the text as a number of type T: decimal digits, for floating-point types with point and
// exponent too. Nothing if it is no such number, is not finite, or does not fit T.
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

// One flag. The functions below make one that reads and writes a variable.
struct Flag {
  std::string name;  // without its dashes; a name in capitals is an argument without a flag
  std::string type;  // what follows it, as help shows it; "": nothing, the flag alone means true
  std::string help;
  std::function<std::string()> text;  // the value, as files have it
  // Reads a value. Returns what is wrong with the text, as a sentence; "": nothing.
  std::function<std::string(const std::string& text)> set;
  std::string range{};   // of a number: "1 to 1024"; "": any
  std::string group{};   // heading in help
  bool is_text = false;  // in quotes in a file
  bool required = false;
  bool repeated = false;  // may be given several times, or with several values
};

// As flags and configuration files have it: the fewest digits that read back.
template <typename T>
std::string number_text(T value) {
  return fmt::format("{}", value);
}

// A number from low to high.
template <typename T>
Flag number(std::string name, T& value, std::type_identity_t<T> low, std::type_identity_t<T> high,
            std::string help) {
  constexpr bool kWhole = std::is_integral_v<T>;
  // Bounds of the program, which nobody would reach, are only in the message.
  const bool open = static_cast<double>(high) > 1e5;
  const bool unbounded = !kWhole && high == std::numeric_limits<T>::max();
  const auto set = [&value, low, high, unbounded](const std::string& text) {
    const std::optional<T> number = parse_number<T>(text);
    if (!number || *number < low || *number > high) {
      return fmt::format("'{}' is no {} from {} {}", text,
                         kWhole ? "whole number in decimal digits" : "finite number", low,
                         unbounded ? "on" : fmt::format("to {}", high));
    }
    value = *number;
    return std::string();
  };
  return {.name = std::move(name),
          .type = kWhole ? "INT" : "FLOAT",
          .help = std::move(help),
          .text = [&value] { return number_text(value); },
          .set = set,
          .range = open ? fmt::format("at least {}", low) : fmt::format("{} to {}", low, high)};
}

// Numbers, with commas between them.
Flag numbers(std::string name, std::vector<int64_t>& values, int64_t low, int64_t high,
             std::string help);

// Followed by true or false.
Flag boolean(std::string name, bool& value, std::string help);
// Stands alone and means true.
Flag toggle(std::string name, bool& value, std::string help);

// Text: a std::string or std::filesystem::path, also in an std::optional.
template <typename T>
Flag text(std::string name, T& value, std::string help) {
  const auto get = [&value]() -> std::string {
    if constexpr (std::is_convertible_v<T, std::string>) {
      return value;
    } else {
      return value.value_or("");
    }
  };
  const auto set = [&value](const std::string& given) {
    value = given;
    return std::string();
  };
  return {.name = std::move(name),
          .type = "TEXT",
          .help = std::move(help),
          .text = get,
          .set = set,
          .is_text = true};
}

// Texts; each one that is given is added.
template <typename T>
Flag texts(std::string name, std::vector<T>& values, std::string type, std::string help) {
  const auto add = [&values](const std::string& given) {
    values.emplace_back(given);
    return std::string();
  };
  return {.name = std::move(name),
          .type = std::move(type),
          .help = std::move(help),
          .text = [] { return std::string(); },
          .set = add,
          .is_text = true,
          .repeated = true};
}

// "'x' is none of a, b, c".
std::string none_of(std::string_view text, const std::vector<std::string>& allowed);

// One of a few values of an enumeration, by name_of(), or of numbers.
template <typename T>
Flag choice(std::string name, T& value, std::vector<std::type_identity_t<T>> allowed,
            std::string help) {
  constexpr bool kNumber = std::is_arithmetic_v<T>;
  const auto text_of = [](const T& v) -> std::string {
    if constexpr (kNumber) {
      return number_text(v);
    } else {
      return std::string(name_of(v));
    }
  };
  std::vector<std::string> names;
  std::string type;
  for (const T& v : allowed) {
    names.push_back(text_of(v));
    type += (type.empty() ? "" : "|") + names.back();
  }
  const auto set = [&value, allowed, names](const std::string& given) {
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] != given) continue;
      value = allowed[i];
      return std::string();
    }
    return none_of(given, names);
  };
  return {.name = std::move(name),
          .type = std::move(type),
          .help = std::move(help),
          .text = [&value, text_of] { return text_of(value); },
          .set = set,
          .is_text = !kNumber};
}

inline Flag required(Flag flag) {
  flag.required = true;
  return flag;
}

// What a command line says, before any of it has a meaning.
struct CommandLine {
  struct Value {
    std::string flag, text;
  };
  std::vector<Value> values;  // in the order of the flags
  bool help = false;          // help was asked for
};

// A program's flags.
class Flags {
 public:
  // `about`: a sentence for help.
  Flags(std::string program, std::string about, std::vector<Flag> flags);

  // Sets the variables. False after printing the help that was asked for. UserError if a flag is
  // unknown, is given twice, or has a value that does not fit.
  bool parse(int argc, char** argv);

  // The parts of parse(): UserError if a flag is unknown, is given twice or lacks its value.
  CommandLine read(int argc, char** argv) const;
  // Sets one flag. UserError if the value does not fit: "BEFORE--FLAG: what is wrong".
  void set(const CommandLine::Value& value, const std::string& before = "");
  // The variables' values are shown as the defaults.
  std::string help() const;

  const Flag* find(std::string_view name) const;  // null: there is none
  const std::vector<Flag>& all() const { return flags_; }

  // Whether the last parse() met it.
  bool given(std::string_view name) const;
  // A flag that does nothing is an error. `why` ends a sentence about it: "does nothing WHY".
  void refuse_idle(std::string_view name, bool idle, std::string_view why) const;

 private:
  std::string program_, about_;
  std::vector<Flag> flags_;
  CommandLine given_;
};

}  // namespace lathe
