// A shard of any bytes opens or gives a UserError. If it opens, all its tokens can be read.
#include "src/data/shard.h"

#include <sys/mman.h>
#include <unistd.h>

#include "kernels/device/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const lathe::FileHandle file(::memfd_create("shard", MFD_CLOEXEC));
  lathe::write_all(file.get(), data, size, "shard");
  try {
    const lathe::Shard shard(fmt::format("/proc/self/fd/{}", file.get()));
    LATHE_CHECK(size == lathe::kShardHeaderBytes + 2 * static_cast<size_t>(shard.size()));
    std::vector<int32_t> tokens(static_cast<size_t>(shard.size()));
    shard.copy(0, shard.size(), tokens.data(), 0);
    shard.copy(0, shard.size(), tokens.data(), 50257);
  } catch (const lathe::UserError&) {
  }
  return 0;
}
