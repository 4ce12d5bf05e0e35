// libFuzzer: safetensors headers. For any bytes, parsing gives a UserError or entries inside the
// file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/device/error.h"
#include "src/io/safetensors.h"

namespace {

void parse(std::span<const std::byte> file) {
  try {
    const lathe::SafetensorsHeader header =
        lathe::parse_safetensors_header(file, file.size(), "fuzz");
    uint64_t covered = 0;
    for (const lathe::SafetensorsEntry& entry : header.entries) {
      if (entry.begin != covered || entry.end < entry.begin) std::abort();
      const uint64_t elements = static_cast<uint64_t>(entry.elements());
      if (entry.bytes() != elements * lathe::size_of(entry.type)) std::abort();
      covered = entry.end;
    }
    if (header.data_begin + covered != file.size()) std::abort();
  } catch (const lathe::UserError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parse(std::as_bytes(std::span(data, size)));
  // The same bytes after a correct header length, so that the JSON parser runs.
  std::vector<uint8_t> framed(8 + size);
  const uint64_t length = size;
  std::memcpy(framed.data(), &length, 8);
  if (size > 0) std::memcpy(framed.data() + 8, data, size);
  parse(std::as_bytes(std::span(framed)));
  return 0;
}
