#include "src/io/strict_json.h"

#include <algorithm>
#include <set>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"

namespace lathe {

using nlohmann::json;

namespace {

std::string shown(const json& value) {
  return shortened(value.dump(-1, ' ', true, json::error_handler_t::replace), kMostQuotedBytes);
}

// Checks what json::parse does not: duplicate keys (the last would silently win) and depth.
class StrictChecker {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  StrictChecker(std::string_view file, int max_depth) : file_(file), max_depth_(max_depth) {}

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(number_integer_t) { return true; }
  bool number_unsigned(number_unsigned_t) { return true; }
  bool number_float(number_float_t, const string_t&) { return true; }
  bool string(string_t&) { return true; }
  bool binary(binary_t&) { return true; }
  bool start_object(size_t) { return deeper(); }
  bool start_array(size_t) { return deeper(); }
  bool end_object() { return shallower(); }
  bool end_array() { return shallower(); }
  bool key(string_t& name) {
    if (!keys_.back().insert(name).second) {
      throw UserError("{}: key {} occurs twice; it may occur once", file_, json_quoted(name));
    }
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    throw UserError("{} is not valid JSON at byte {}; it is damaged or not such a file", file_,
                    position);
  }

 private:
  bool deeper() {
    keys_.emplace_back();
    if (keys_.size() > max_depth_) {
      throw UserError("{}: JSON is nested more than {} deep; it is not such a file", file_,
                      max_depth_);
    }
    return true;
  }
  bool shallower() {
    keys_.pop_back();
    return true;
  }

  std::string_view file_;
  size_t max_depth_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

json parse_strict_json(std::string_view text, std::string_view file, int max_depth) {
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    // The parser would take a NUL for the end and ignore the rest.
    throw UserError("{} is not valid JSON at byte {}; it is damaged or not such a file", file, nul);
  }
  StrictChecker checker(file, max_depth);
  json::sax_parse(text.begin(), text.end(), &checker);
  return parse_json(text);
}

StrictObject::StrictObject(const json& value, std::string_view file, std::string_view where)
    : object_(value), file_(file), where_(where) {
  if (!value.is_object()) {
    throw UserError("{}: {} is {}, expected an object", file_,
                    where_.empty() ? "the text" : json_quoted(where_), value.type_name());
  }
}

std::string StrictObject::name_of(std::string_view key) const {
  return json_quoted(where_.empty() ? std::string(key) : where_ + "." + std::string(key));
}

const json& StrictObject::take(std::string_view key) {
  const auto found = object_.find(std::string(key));
  if (found == object_.end()) throw UserError("{}: key {} is missing", file_, name_of(key));
  taken_.emplace_back(key);
  return *found;
}

int64_t StrictObject::take_integer(std::string_view key, int64_t minimum, int64_t maximum) {
  const json& value = take(key);
  // get<int64_t>() would wrap an unsigned value above the signed range.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX) &&
                    value.get<int64_t>() >= minimum && value.get<int64_t>() <= maximum;
  if (!fits) {
    throw UserError("{}: key {} is {}, expected a whole number from {} to {}", file_, name_of(key),
                    shown(value), minimum, maximum);
  }
  return value.get<int64_t>();
}

uint64_t StrictObject::take_unsigned(std::string_view key) {
  const json& value = take(key);
  if (!value.is_number_unsigned()) {
    throw UserError("{}: key {} is {}, expected a whole number from 0 to {}", file_, name_of(key),
                    shown(value), UINT64_MAX);
  }
  return value.get<uint64_t>();
}

std::string StrictObject::take_string(std::string_view key) {
  const json& value = take(key);
  if (!value.is_string()) {
    throw UserError("{}: key {} is {}, expected a string", file_, name_of(key), value.type_name());
  }
  return value.get<std::string>();
}

void StrictObject::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(taken_.begin(), taken_.end(), key) == taken_.end()) {
      throw UserError("{}: unknown key {}", file_, name_of(key));
    }
  }
}

}  // namespace lathe
