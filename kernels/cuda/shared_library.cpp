#include "kernels/cuda/shared_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <vector>

namespace lathe::cuda {

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<std::string> files_like(const std::string& pattern) {
  std::vector<std::string> files;
  glob_t found{};
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    files.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return files;
}

// Paths to try, likeliest first.
std::vector<std::string> candidates(const std::string& name) {
  std::vector<std::string> paths{name, "/usr/local/cuda/lib64/" + name};
  const auto add = [&](const std::string& pattern) {
    for (std::string& file : files_like(pattern)) paths.push_back(std::move(file));
  };
  if (const std::string home = environment("CUDA_HOME"); !home.empty())
    paths.push_back(home + "/lib64/" + name);
  const std::string packages = "/lib/python3*/*-packages/nvidia/*/lib/" + name;
  for (const char* prefix : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const std::string root = environment(prefix); !root.empty()) add(root + packages);
  if (const std::string home = environment("HOME"); !home.empty()) add(home + "/.local" + packages);
  add("/usr/local" + packages);
  add("/usr" + packages);
  return paths;
}

void* open_library(const LibraryName& library) {
  // If the user names a file, use it or fail: never silently use another.
  if (const std::string chosen = environment(library.variable); !chosen.empty()) {
    if (void* opened = dlopen(chosen.c_str(), RTLD_NOW | RTLD_LOCAL)) return opened;
    throw UserError("{}: {} cannot be loaded ({}); name the file {}", library.variable,
                    library.title, dlerror(), library.name);
  }
  for (const std::string& path : candidates(library.name))
    if (void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return opened;
  throw UserError("{}: {} is not found, and {}; {}, or set {} to the file", library.user,
                  library.name, library.purpose, library.advice, library.variable);
}

}  // namespace

SharedLibrary::SharedLibrary(const LibraryName& name) : name_(name), library_(open_library(name)) {}

void* SharedLibrary::look_up(const char* name) const {
  return dlsym(library_, name);
}

void* SharedLibrary::symbol(const char* name) const {
  void* const found = look_up(name);
  if (found == nullptr)
    throw UserError("{}: the library has no {}; it is not {}", name_.variable, name, name_.title);
  return found;
}

}  // namespace lathe::cuda
