// Prints docs/flags.md (`make docs`).
#include "kernels/device/standard_streams.h"
#include "src/train/flags.h"

int main() {
  lathe::print_out(lathe::flags_page());
  return 0;
}
