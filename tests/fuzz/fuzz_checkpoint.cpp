// libFuzzer: manifest.json and trainer.json. Reading, writing and reading again gives the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kernels/device/error.h"
#include "src/io/checkpoint.h"
#include "src/io/trainer_state.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const lathe::Manifest manifest = lathe::parse_manifest(text, "fuzz");
    if (lathe::parse_manifest(lathe::to_json(manifest), "fuzz") != manifest) std::abort();
  } catch (const lathe::UserError&) {
  }
  try {
    const lathe::TrainerState state = lathe::parse_trainer_state(text, "fuzz");
    if (lathe::parse_trainer_state(lathe::to_json(state), "fuzz") != state) std::abort();
  } catch (const lathe::UserError&) {
  }
  return 0;
}
