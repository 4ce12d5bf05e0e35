// JSON read strictly: one value, no duplicate keys, bounded depth, no unknown or mistyped key.
// Only for .cpp files: it draws in nlohmann/json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/json.h"
#include "src/io/json_text.h"

namespace lathe {

// Parses `text`, the content of `file`. Throws UserError on anything but one JSON value whose
// objects and arrays are nested at most max_depth deep and whose objects have no key twice.
nlohmann::json parse_strict_json(std::string_view text, std::string_view file, int max_depth);

// Takes an object apart key by key. Each take throws UserError that names file and key where the
// key is missing or of another type; finish() where a key was not taken.
class StrictObject {
 public:
  // `where` is "" for the outermost object, else the object's key.
  StrictObject(const nlohmann::json& value, std::string_view file, std::string_view where = "");

  const nlohmann::json& take(std::string_view key);
  int64_t take_integer(std::string_view key, int64_t minimum, int64_t maximum);
  uint64_t take_unsigned(std::string_view key);
  std::string take_string(std::string_view key);
  void finish() const;

  // All keys and values, for an object whose keys are free.
  auto items() const { return object_.items(); }

  // The name of a key of this object in errors.
  std::string name_of(std::string_view key) const;

 private:
  const nlohmann::json& object_;
  std::string file_;
  std::string where_;
  std::vector<std::string> taken_;
};

}  // namespace lathe
