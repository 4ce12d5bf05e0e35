// --config FILE of build/train: any bytes give options or a UserError.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "src/train/flags.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int file = memfd_create("config", 0);
  if (file < 0 || write(file, data, size) != static_cast<ssize_t>(size)) return 0;
  std::string path = "/proc/self/fd/" + std::to_string(file);
  std::string program = "train", flag = "--config", dry_run = "--dry-run";
  char* arguments[] = {program.data(), dry_run.data(), flag.data(), path.data()};
  try {
    int exit_code = -1;
    lathe::parse_train_options(4, arguments, &exit_code);
  } catch (const lathe::UserError&) {
  }
  close(file);
  return 0;
}
