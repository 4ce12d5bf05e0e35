#include <omp.h>

#include "kernels/cpu/threads.h"

namespace lathe::cpu {

int max_threads() {
  return omp_in_parallel() ? 1 : omp_get_max_threads();
}
void set_max_threads(int threads) {
  omp_set_num_threads(threads);
}
int thread_index() {
  return omp_get_thread_num();
}

void thread_barrier() {
#pragma omp barrier
}

}  // namespace lathe::cpu
