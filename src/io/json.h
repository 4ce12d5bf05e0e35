// nlohmann/json with what it takes longest to compile done once, in json.cpp.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace lathe {

// What nlohmann::json::parse() does. If the text is not valid, it throws nlohmann's exception, or
// returns a discarded value if it is not to throw.
nlohmann::json parse_json(std::string_view text, bool throws = true);
nlohmann::ordered_json parse_ordered_json(std::string_view text);

}  // namespace lathe
