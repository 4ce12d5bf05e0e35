#include "src/io/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"

namespace lathe {

namespace {

std::optional<bool> parse_boolean(std::string_view text) {
  for (const char* yes : {"1", "true", "yes", "on"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"0", "false", "no", "off"}) {
    if (text == no) return false;
  }
  return {};
}

Flag truth(std::string name, bool& value, std::string type, std::string help, std::string yes,
           std::string no) {
  const auto set = [&value](const std::string& text) {
    const std::optional<bool> truth = parse_boolean(text);
    if (!truth) return "'" + text + "' is neither true nor false";
    value = *truth;
    return std::string();
  };
  return {.name = std::move(name),
          .type = std::move(type),
          .help = std::move(help),
          .text = [&value, yes, no] { return value ? yes : no; },
          .set = set};
}

// "--steps", or "RUN_DIR" as it is.
std::string with_dashes(const std::string& name) {
  const bool capitals = std::ranges::none_of(name, [](char c) { return c >= 'a' && c <= 'z'; });
  return capitals ? name : "--" + name;
}

// The flags for CLI11, which only takes the words apart and writes the help: it keeps texts as they
// are, and reads none.
std::unique_ptr<CLI::App> make_app(const std::string& program, const std::string& about,
                                   const std::vector<Flag>& flags) {
  constexpr int kMostValues = 1 << 20;
  auto app = std::make_unique<CLI::App>(about, program);
  for (const Flag& flag : flags) {
    const std::string name = with_dashes(flag.name);
    CLI::Option* option = flag.type.empty() ? app->add_flag(name) : app->add_option(name);
    option->description(flag.help)->required(flag.required);
    if (!flag.group.empty()) option->group(flag.group);
    if (flag.type.empty()) continue;
    option->type_name(flag.type);
    if (const std::string value = flag.text(); !value.empty()) option->default_str(value);
    if (flag.repeated) option->expected(1, kMostValues)->allow_extra_args(false);
  }
  return app;
}

}  // namespace

Flag numbers(std::string name, std::vector<int64_t>& values, int64_t low, int64_t high,
             std::string help) {
  const auto text = [&values] {
    std::string all;
    for (const int64_t value : values) all += (all.empty() ? "" : ",") + number_text(value);
    return all;
  };
  const auto set = [&values, low, high](const std::string& given) {
    std::vector<int64_t> read;
    int64_t value = 0;
    const Flag one = number("", value, low, high, "");
    for (size_t at = 0; at <= given.size();) {
      const size_t comma = std::min(given.find(',', at), given.size());
      if (std::string wrong = one.set(given.substr(at, comma - at)); !wrong.empty()) return wrong;
      read.push_back(value);
      at = comma + 1;
    }
    values = read;
    return std::string();
  };
  return {.name = std::move(name),
          .type = "INT,...",
          .help = std::move(help),
          .text = text,
          .set = set};
}

Flag boolean(std::string name, bool& value, std::string help) {
  return truth(std::move(name), value, "BOOLEAN", std::move(help), "1", "0");
}

Flag toggle(std::string name, bool& value, std::string help) {
  return truth(std::move(name), value, "", std::move(help), "true", "false");
}

std::string none_of(std::string_view text, const std::vector<std::string>& allowed) {
  std::string names;
  for (const std::string& name : allowed) names += (names.empty() ? "" : ", ") + name;
  return fmt::format("'{}' is none of {}", text, names);
}

Flags::Flags(std::string program, std::string about, std::vector<Flag> flags)
    : program_(std::move(program)), about_(std::move(about)), flags_(std::move(flags)) {}

CommandLine Flags::read(int argc, char** argv) const {
  const auto app = make_app(program_, about_, flags_);
  CommandLine line;
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      throw UserError("{} (see {} --help)", shortened(error.what(), kMostReportedBytes), program_);
    }
    line.help = true;
  }
  for (const Flag& flag : flags_) {
    for (const std::string& text : app->get_option(with_dashes(flag.name))->results())
      line.values.push_back({flag.name, text});
  }
  return line;
}

void Flags::set(const CommandLine::Value& value, const std::string& before) {
  const Flag* const flag = find(value.flag);
  LATHE_CHECK(flag != nullptr, "there is no flag {}", value.flag);
  const std::string wrong = flag->set(value.text);
  if (wrong.empty()) return;
  throw UserError("{}{}: {} (see {} --help)", before, with_dashes(flag->name),
                  shortened(wrong, kMostReportedBytes), program_);
}

std::string Flags::help() const {
  return make_app(program_, about_, flags_)->help();
}

bool Flags::parse(int argc, char** argv) {
  given_ = read(argc, argv);
  if (given_.help) {
    print_out(help());
    return false;
  }
  for (const CommandLine::Value& value : given_.values) set(value);
  return true;
}

const Flag* Flags::find(std::string_view name) const {
  const auto found = std::ranges::find(flags_, name, &Flag::name);
  return found == flags_.end() ? nullptr : &*found;
}

bool Flags::given(std::string_view name) const {
  return std::ranges::find(given_.values, name, &CommandLine::Value::flag) != given_.values.end();
}

void Flags::refuse_idle(std::string_view name, bool idle, std::string_view why) const {
  if (idle && given(name)) throw UserError("--{} does nothing {}: take it away", name, why);
}

}  // namespace lathe
