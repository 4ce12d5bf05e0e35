// The number of threads of a parallel region, with and without OpenMP (threads_openmp.cpp or
// threads_serial.cpp, chosen by CMake).
#pragma once

namespace lathe::cpu {

// The most threads of a parallel region started here; 1 inside a parallel region.
int max_threads();
// Sets it for the calling thread's later regions; without OpenMP it stays 1.
void set_max_threads(int threads);
// Index of the calling thread in its parallel region, from 0.
int thread_index();
// Waits until every thread of the parallel region has called it.
void thread_barrier();

}  // namespace lathe::cpu
