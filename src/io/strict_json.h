// JSON read strictly: one value, no duplicate keys, bounded depth, no unknown or mistyped key.
// Include it only in .cpp files: it includes nlohmann/json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/json.h"
#include "src/io/json_text.h"

namespace lathe {

// Parses `text`, the content of `file`. Throws UserError unless it is one JSON value whose objects
// and arrays are nested at most max_depth deep and whose objects have no duplicate keys.
nlohmann::json parse_strict_json(std::string_view text, std::string_view file, int max_depth);

// Reads an object key by key. Each take throws UserError that names file and key if the key is
// missing or of another type; finish() throws if a key was not taken.
class StrictObject {
 public:
  // `where` is the object's key, or "" for the outermost object.
  StrictObject(const nlohmann::json& value, std::string_view file, std::string_view where = "");

  const nlohmann::json& take(std::string_view key);
  int64_t take_integer(std::string_view key, int64_t minimum, int64_t maximum);
  uint64_t take_unsigned(std::string_view key);
  std::string take_string(std::string_view key);
  void finish() const;

  // All keys and values, for an object with arbitrary keys.
  auto items() const { return object_.items(); }

  // A key of this object as errors name it.
  std::string name_of(std::string_view key) const;

 private:
  const nlohmann::json& object_;
  std::string file_;
  std::string where_;
  std::vector<std::string> taken_;
};

}  // namespace lathe
