# Finds every library that lathe uses, as a system package or in the folder LATHE_DEPS.
#
# LATHE_DEPS/include holds headers (CLI/, nlohmann/, fmt/, xxhash.h, utf8proc.h, ...),
# LATHE_DEPS/cuda/include those of CUDA's libraries (cublasLt.h, nccl.h, ...), LATHE_DEPS/lib static
# libraries (libutf8proc.a), LATHE_DEPS/googletest the sources of GoogleTest.

if(LATHE_DEPS)
  list(PREPEND CMAKE_INCLUDE_PATH ${LATHE_DEPS}/include ${LATHE_DEPS}/cuda/include)
  list(PREPEND CMAKE_LIBRARY_PATH ${LATHE_DEPS}/lib)
endif()

# lathe_header_only(NAME HEADER PACKAGE): an interface library for a header-only dependency.
function(lathe_header_only name header package)
  find_path(LATHE_${name}_INCLUDE ${header})
  if(NOT LATHE_${name}_INCLUDE)
    message(FATAL_ERROR "${header} not found: install ${package}, or put it in LATHE_DEPS/include")
  endif()
  add_library(lathe_${name} INTERFACE)
  target_include_directories(lathe_${name} SYSTEM INTERFACE ${LATHE_${name}_INCLUDE})
endfunction()

lathe_header_only(cli11 CLI/CLI.hpp libcli11-dev)
lathe_header_only(json nlohmann/json.hpp nlohmann-json3-dev)
lathe_header_only(xxhash xxhash.h libxxhash-dev)
target_compile_definitions(lathe_xxhash INTERFACE XXH_INLINE_ALL  # -Og inlines less than its hints demand
                           $<$<NOT:$<CONFIG:Release>>:XXH_NO_INLINE_HINTS=1>)
lathe_header_only(fmt fmt/format.h libfmt-dev)
if(NOT LATHE_DEPS)  # its header needs no library, and the system's may have another version
  find_library(LATHE_FMT_LIBRARY fmt)
endif()
if(LATHE_FMT_LIBRARY)
  target_link_libraries(lathe_fmt INTERFACE ${LATHE_FMT_LIBRARY})
else()
  target_compile_definitions(lathe_fmt INTERFACE FMT_HEADER_ONLY)
endif()
lathe_header_only(utf8proc utf8proc.h libutf8proc-dev)
find_library(LATHE_UTF8PROC_LIBRARY NAMES utf8proc)
if(NOT LATHE_UTF8PROC_LIBRARY)
  message(FATAL_ERROR "libutf8proc not found: install libutf8proc-dev, or put libutf8proc.a in LATHE_DEPS/lib")
endif()
target_link_libraries(lathe_utf8proc INTERFACE ${LATHE_UTF8PROC_LIBRARY})

find_package(Threads REQUIRED)

if(LATHE_OPENMP)
  find_package(OpenMP COMPONENTS CXX)
endif()
if(NOT OpenMP_CXX_FOUND)
  message(STATUS "lathe: no OpenMP, so the CPU kernels run on one thread")
endif()

if(LATHE_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)  # only the C interface
  find_package(MPI COMPONENTS CXX)
endif()
if(NOT MPI_CXX_FOUND)
  message(STATUS "lathe: no MPI, so a run has one rank")
endif()

# Finds oneDNN 2 by its header and library, because the package's CMake file requires OpenCL's headers,
# which neither the package nor lathe needs.
if(LATHE_ONEDNN)
  find_path(LATHE_ONEDNN_INCLUDE oneapi/dnnl/dnnl_version.h)
  find_library(LATHE_ONEDNN_LIBRARY NAMES dnnl)
  if(LATHE_ONEDNN_INCLUDE AND LATHE_ONEDNN_LIBRARY)
    file(STRINGS ${LATHE_ONEDNN_INCLUDE}/oneapi/dnnl/dnnl_version.h LATHE_ONEDNN_MAJOR
         REGEX "#define DNNL_VERSION_MAJOR 2$")
  endif()
endif()
if(LATHE_ONEDNN_MAJOR)
  add_library(lathe_onednn INTERFACE)
  target_include_directories(lathe_onednn SYSTEM INTERFACE ${LATHE_ONEDNN_INCLUDE})
  target_link_libraries(lathe_onednn INTERFACE ${LATHE_ONEDNN_LIBRARY})
else()
  message(STATUS "lathe: no oneDNN 2, so matmuls use lathe's plain code")
endif()

if(EXISTS "${LATHE_DEPS}/googletest/CMakeLists.txt")
  set(INSTALL_GTEST OFF)
  add_subdirectory(${LATHE_DEPS}/googletest ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
  if(NOT TARGET GTest::gtest_main)  # older versions lack this name
    add_library(GTest::gtest_main ALIAS gtest_main)
  endif()
  set(GTest_FOUND TRUE)
else()
  find_package(GTest)
endif()
find_package(benchmark QUIET)
