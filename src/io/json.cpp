#include "src/io/json.h"

namespace lathe {

nlohmann::json parse_json(std::string_view text, bool throws) {
  return nlohmann::json::parse(text, nullptr, throws);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text) {
  return nlohmann::ordered_json::parse(text);
}

}  // namespace lathe
