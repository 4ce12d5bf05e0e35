#include "kernels/cuda/cublaslt_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/device/error.h"

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

// Names to try, the likeliest first.
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

void* open_library(const std::string& name) {
  // What the user names is taken or refused: nothing else stands in for it silently.
  if (const std::string chosen = environment("LATHE_CUBLASLT"); !chosen.empty()) {
    if (void* library = dlopen(chosen.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    throw UserError("LATHE_CUBLASLT: cuBLASLt cannot be loaded ({}); name the file {}", dlerror(),
                    name);
  }
  for (const std::string& path : candidates(name))
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  throw UserError(
      "--device cuda: {} is not found, and matrix products on a GPU need it; install CUDA's "
      "libraries (pip install nvidia-cublas does, too), or set LATHE_CUBLASLT to the file",
      name);
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw UserError("LATHE_CUBLASLT: the library has no {}; it is not cuBLASLt {}", name,
                    CUBLAS_VER_MAJOR);
}

}  // namespace

CublasLt load_cublaslt() {
  void* const library = open_library(fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR));
  CublasLt lt;
  find(library, "cublasLtCreate", lt.create);
  find(library, "cublasLtDestroy", lt.destroy);
  find(library, "cublasLtGetVersion", lt.get_version);
  find(library, "cublasLtGetStatusString", lt.get_status_string);
  find(library, "cublasLtMatmulDescCreate", lt.matmul_desc_create);
  find(library, "cublasLtMatmulDescDestroy", lt.matmul_desc_destroy);
  find(library, "cublasLtMatmulDescSetAttribute", lt.matmul_desc_set_attribute);
  find(library, "cublasLtMatrixLayoutCreate", lt.matrix_layout_create);
  find(library, "cublasLtMatrixLayoutDestroy", lt.matrix_layout_destroy);
  find(library, "cublasLtMatmulPreferenceCreate", lt.preference_create);
  find(library, "cublasLtMatmulPreferenceDestroy", lt.preference_destroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", lt.preference_set_attribute);
  find(library, "cublasLtMatmulAlgoGetHeuristic", lt.algo_get_heuristic);
  find(library, "cublasLtMatmulAlgoCheck", lt.algo_check);
  find(library, "cublasLtMatmulAlgoConfigGetAttribute", lt.algo_config_get_attribute);
  find(library, "cublasLtMatmul", lt.matmul);
  return lt;
}

}  // namespace lathe::cuda
