// config.json of a model directory: any bytes give a valid configuration or a UserError.
#include <cstdint>
#include <string_view>

#include "src/model/weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    lathe::validate(lathe::parse_model_config(text, "config.json"));
  } catch (const lathe::UserError&) {
  }
  return 0;
}
