# CUDA: nvcc for GPUs, or g++ and the stand-ins of kernels/cuda_on_cpu (LATHE_CUDA_ON_CPU).
#
# lathe_cuda_flags        for targets that include CUDA's headers
# lathe_cuda_sources(T F...)  compiles the .cu files F of target T with nvcc or g++
option(LATHE_CUDA "Build the CUDA device if nvcc is found" ON)
option(LATHE_CUDA_REQUIRED "Fail if nvcc is not found" OFF)
option(LATHE_CUDA_ON_CPU "Build the CUDA device to run on the CPU" OFF)
option(LATHE_COVERAGE "Measure the coverage of kernels/cuda (with LATHE_CUDA_ON_CPU)" OFF)

# The architectures of this machine's GPUs, if nvcc knows them all; each more takes minutes to compile.
# "80-real;90a-real" if there is no GPU.
function(lathe_default_architectures result)
  set(${result} 80-real 90a-real PARENT_SCOPE)
  find_program(LATHE_NVIDIA_SMI nvidia-smi)
  if(NOT LATHE_NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND ${LATHE_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE said RESULT_VARIABLE failed ERROR_QUIET TIMEOUT 60)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${said}")
  if(failed OR NOT capabilities)
    return()
  endif()
  list(REMOVE_DUPLICATES capabilities)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(architectures "")
  foreach(capability IN LISTS capabilities)
    string(REPLACE "." "" code ${capability})
    if(code LESS 80 OR NOT known MATCHES "sm_${code}\n")
      return()
    endif()
    if(code GREATER_EQUAL 90)
      string(APPEND code a)  # with the features that only this generation has
    endif()
    list(APPEND architectures ${code}-real)
  endforeach()
  message(STATUS "lathe: GPU architectures ${architectures}, from nvidia-smi")
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

# The architectures that "release" means with this nvcc. Code for X.0 also runs on X.1 and later, so
# the first of each generation suffices. The newest one's PTX is for future GPUs.
function(lathe_release_architectures result)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE codes
                  RESULT_VARIABLE failed ERROR_QUIET)
  if(failed)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} --list-gpu-code failed; name the architectures in LATHE_CUDA_ARCHITECTURES")
  endif()
  string(REGEX MATCHALL "sm_[0-9]+" codes "${codes}")
  list(TRANSFORM codes REPLACE "sm_" "")
  list(SORT codes COMPARE NATURAL)
  set(architectures 80-real 90a-real)
  set(newest "")
  foreach(code IN LISTS codes)
    math(EXPR generation "${code} / 10")
    if(generation GREATER 9 AND NOT generation STREQUAL newest)
      set(newest ${generation})
      set(newest_code ${code})
      list(APPEND architectures ${code}-real)
    endif()
  endforeach()
  if(newest)
    list(APPEND architectures ${newest_code}-virtual)
  endif()
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

# lathe_cuda_header(RESULT HEADER): the folder with a header of CUDA's libraries. nvcc may come without
# them, so this looks in the toolkit, LATHE_DEPS, the system and Python packages.
function(lathe_cuda_header result header)
  set(packages "")
  foreach(prefix "$ENV{VIRTUAL_ENV}" "$ENV{CONDA_PREFIX}" "$ENV{HOME}/.local" /usr/local /usr)
    file(GLOB found "${prefix}/lib/python3*/*-packages/nvidia/*/include")
    list(APPEND packages ${found})
  endforeach()
  find_path(${result} ${header} HINTS ${LATHE_CUDA_INCLUDE} ENV NCCL_HOME PATHS ${packages} PATH_SUFFIXES include)
endfunction()

set(LATHE_HAS_CUDA OFF)
add_library(lathe_cuda_flags INTERFACE)

if(LATHE_CUDA_ON_CPU)
  find_path(LATHE_CUDA_INCLUDE cuda_runtime.h
            HINTS ${LATHE_DEPS}/include ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES include)
  find_library(LATHE_BOOST_CONTEXT boost_context)
  if(NOT LATHE_CUDA_INCLUDE OR NOT LATHE_BOOST_CONTEXT)
    message(FATAL_ERROR "CUDA on the CPU needs the headers of the CUDA toolkit and libboost-context-dev")
  endif()
  set(LATHE_HAS_CUDA ON)
  target_include_directories(lathe_cuda_flags SYSTEM INTERFACE ${LATHE_CUDA_INCLUDE})
  target_link_libraries(lathe_cuda_flags INTERFACE lathe_cuda_on_cpu)

  function(lathe_cuda_sources target)
    # Our own ptx.cuh must be found before the original.
    target_include_directories(${target} BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/kernels/cuda_on_cpu/include)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
      "-include;${PROJECT_SOURCE_DIR}/kernels/cuda_on_cpu/execution.h;-ftrivial-auto-var-init=pattern;-Wno-maybe-uninitialized;-Wno-unknown-pragmas;-Wno-attributes;$<$<CONFIG:Release>:-O2>;$<$<CONFIG:RelWithDebInfo>:-O1>;$<$<CONFIG:Release>:-march=${LATHE_MARCH}>")
  endfunction()
elseif(LATHE_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CACHE{LATHE_CUDA_ARCHITECTURES})
      lathe_default_architectures(architectures)
    endif()
    set(LATHE_CUDA_ARCHITECTURES "${architectures}" CACHE STRING
        "GPU architectures to compile for; release: 8.0, 9.0 and all newer ones that nvcc knows")
    if(LATHE_CUDA_ARCHITECTURES STREQUAL "release")
      lathe_release_architectures(CMAKE_CUDA_ARCHITECTURES)
      message(STATUS "lathe: GPU architectures ${CMAKE_CUDA_ARCHITECTURES}")
    else()
      set(CMAKE_CUDA_ARCHITECTURES ${LATHE_CUDA_ARCHITECTURES})
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know it for nvcc 13
    set(LATHE_HAS_CUDA ON)
    # Not with FindCUDAToolkit: it requires more than nvcc brings along (the shared runtime).
    find_path(LATHE_CUDA_INCLUDE cuda_runtime.h HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    find_library(LATHE_CUDART cudart_static
                 HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${CMAKE_CUDA_HOST_IMPLICIT_LINK_DIRECTORIES})
    lathe_cuda_header(LATHE_CUBLASLT_INCLUDE cublasLt.h)
    if(NOT LATHE_CUDA_INCLUDE OR NOT LATHE_CUDART)
      message(FATAL_ERROR "cuda_runtime.h or libcudart_static.a not found beside ${CMAKE_CUDA_COMPILER}")
    endif()
    if(NOT LATHE_CUBLASLT_INCLUDE)
      message(FATAL_ERROR "cublasLt.h not found: install CUDA's libraries (pip install nvidia-cublas does, too), "
                          "or carry it in LATHE_DEPS/cuda/include")
    endif()
    target_include_directories(lathe_cuda_flags SYSTEM INTERFACE ${LATHE_CUDA_INCLUDE} ${LATHE_CUBLASLT_INCLUDE})
    target_link_libraries(lathe_cuda_flags INTERFACE ${LATHE_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)

    set(LATHE_NVCC_ERRORS $<$<BOOL:${LATHE_WERROR}>:-Werror=all-warnings;-Xptxas=-Werror>)
    function(lathe_cuda_sources target)
      # A kernel that spills registers does not compile. g++ checks fmt's format strings, because nvcc's
      # front end fails on the check. Header-only fmt mentions long double (20208), which no kernel uses.
      set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
        "--expt-relaxed-constexpr;-lineinfo;-diag-suppress=20208;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers;-Xptxas=-warn-spills,-warn-lmem-usage;${LATHE_NVCC_ERRORS};-DFMT_USE_CONSTEXPR=1;-DFMT_CONSTEVAL=")
    endfunction()
  elseif(LATHE_CUDA_REQUIRED)
    message(FATAL_ERROR "nvcc not found: put it into PATH, or name it in CUDACXX")
  else()
    message(STATUS "lathe: no nvcc, so the programs cannot use GPUs")
  endif()
endif()
