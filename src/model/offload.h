// What lies outside of the device's memory (--offload; Ren et al., "ZeRO-Offload", 2021;
// Rajbhandari et al., "ZeRO-Infinity", 2021).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>

#include "kernels/device/device.h"

namespace lathe {

// Where masters and moments lie, and what updates them. Masters that are the weights stay with
// these, and `pinned` and `files` concern the moments alone.
enum class StatesPlace : uint8_t {
  device,
  pinned,  // pinned memory, which the device's AdamW reads and writes over the bus
  host,    // the host's memory; the host's AdamW updates them (src/model/host_update.h)
  files,   // a file; the device's AdamW updates them (src/model/file_states.h)
};

// The host's AdamW, and the device's on states in a file, update this many elements at a time.
inline constexpr int64_t kOffloadChunk = int64_t{4} << 20;

struct Offload {
  StatesPlace states = StatesPlace::device;
  std::filesystem::path directory{};  // of StatesPlace::files
  int64_t chunk = kOffloadChunk;
  // Makes the CPU's device for StatesPlace::host, in the thread that uses it.
  std::function<std::unique_ptr<Device>()> host{};
  bool inputs = false;  // of layers (src/model/input_offload.h)
  // This rank's share of the layers' weights, at stage 3 (src/parallel/weight_gathering.h).
  MemorySpace weights = MemorySpace::device;
};

}  // namespace lathe
