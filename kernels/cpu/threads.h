// How many threads a parallel region has, with and without OpenMP (threads_openmp.cpp or
// threads_serial.cpp, chosen by CMake).
#pragma once

namespace lathe {

// Threads that a parallel region started here may have; 1 inside a parallel region.
int max_threads();
// How many threads parallel regions started by this thread have from here on; >= 1.
void set_max_threads(int count);
// Index of the calling thread in its parallel region, from 0.
int thread_index();

}  // namespace lathe
