#include "src/io/json_text.h"

#include "kernels/device/printable.h"
#include "src/io/json.h"

namespace lathe {

using nlohmann::json;

std::string json_quoted(std::string_view text) {
  const std::string quoted = shortened(text, kMostQuotedBytes);
  return json(quoted).dump(-1, ' ', true, json::error_handler_t::replace);
}

bool is_utf8(std::string_view text) {
  try {
    json(text).dump();
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

}  // namespace lathe
