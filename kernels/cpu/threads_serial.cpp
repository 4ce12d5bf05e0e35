#include "kernels/cpu/threads.h"

namespace lathe::cpu {

int max_threads() {
  return 1;
}
void set_max_threads(int) {}
int thread_index() {
  return 0;
}

}  // namespace lathe::cpu
