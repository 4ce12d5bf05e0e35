# Precompiled headers: parsed once per set of flags, not once per source.
#
# They hide a missing #include, so only the builds for tests use them (CMakePresets.json), and `make
# tidy` does not. GCC uses a precompiled header only with the flags that it was compiled with;
# otherwise -Winvalid-pch warns.
option(LATHE_PRECOMPILE "Precompile the headers of libraries, for builds that only test" OFF)

set(LATHE_PRECOMPILED_STANDARD
    <algorithm> <array> <atomic> <bit> <cerrno> <charconv> <chrono> <cmath> <condition_variable> <csignal>
    <cstddef> <cstdint> <cstdio> <cstdlib> <cstring> <deque> <exception> <filesystem> <fstream> <functional>
    <iostream> <limits> <map> <memory> <mutex> <new> <numeric> <optional> <random> <set> <span> <sstream>
    <stdexcept> <string> <string_view> <thread> <tuple> <type_traits> <unordered_map> <utility> <vector>)

# lathe_precompiled(NAME HEADERS ... LIBS ...) compiles the headers; lathe_precompile(TARGET NAME) uses them.
function(lathe_precompiled name)
  cmake_parse_arguments(HEADER "" "" "HEADERS;LIBS" ${ARGN})
  file(CONFIGURE OUTPUT precompiled.cpp CONTENT "")
  add_library(lathe_precompiled_${name} OBJECT ${CMAKE_CURRENT_BINARY_DIR}/precompiled.cpp)
  set_target_properties(lathe_precompiled_${name} PROPERTIES UNITY_BUILD OFF)
  target_link_libraries(lathe_precompiled_${name} PRIVATE lathe_flags ${HEADER_LIBS})
  target_precompile_headers(lathe_precompiled_${name} PRIVATE ${LATHE_PRECOMPILED_STANDARD} ${HEADER_HEADERS})
endfunction()

function(lathe_precompile target name)
  if(TARGET lathe_precompiled_${name})
    target_precompile_headers(${target} REUSE_FROM lathe_precompiled_${name})
    # Not for sources that have flags of their own.
    get_target_property(sources ${target} SOURCES)
    get_target_property(directory ${target} SOURCE_DIR)
    foreach(source IN LISTS sources)
      cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${directory})
      get_source_file_property(options ${source} TARGET_DIRECTORY ${target} COMPILE_OPTIONS)
      if(options)
        set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
      endif()
    endforeach()
  endif()
endfunction()

# Applies to all targets under these folders that are compiled with the flags of libraries. Kernels and
# tests have flags of their own.
function(lathe_precompile_folders)
  foreach(folder IN LISTS ARGN)
    get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
    foreach(target IN LISTS targets)
      get_target_property(type ${target} TYPE)
      get_target_property(libraries ${target} LINK_LIBRARIES)
      if(type STREQUAL "STATIC_LIBRARY" OR type STREQUAL "EXECUTABLE")
        if(NOT "lathe_kernel_flags" IN_LIST libraries)
          lathe_precompile(${target} libraries)
        endif()
      endif()
    endforeach()
    get_property(folders DIRECTORY ${folder} PROPERTY SUBDIRECTORIES)
    lathe_precompile_folders(${folders})
  endforeach()
endfunction()

if(LATHE_DEPS)  # its fmt is compiled with a definition that not all targets have
  set(LATHE_PRECOMPILE OFF)
endif()
if(LATHE_PRECOMPILE)
  lathe_precompiled(libraries HEADERS <fmt/format.h> <nlohmann/json.hpp> LIBS lathe_fmt lathe_json)
endif()
