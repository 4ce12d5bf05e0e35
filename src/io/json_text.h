// JSON strings, for files that have no other JSON: without nlohmann's header, which takes seconds.
#pragma once

#include <string>
#include <string_view>

namespace lathe {

// Text for a message, as a JSON string with its quotes: safe to print, whatever bytes it holds, and
// shortened to kMostQuotedBytes.
std::string json_quoted(std::string_view text);
bool is_utf8(std::string_view text);

}  // namespace lathe
