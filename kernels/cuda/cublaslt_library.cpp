#include "kernels/cuda/cublaslt_library.h"

#include <string>

#include "kernels/cuda/shared_library.h"

namespace lathe::cuda {

CublasLt load_cublaslt() {
  const SharedLibrary library({.name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR),
                               .variable = "LATHE_CUBLASLT",
                               .title = fmt::format("cuBLASLt {}", CUBLAS_VER_MAJOR),
                               .user = "--device cuda",
                               .purpose = "matrix products on a GPU need it",
                               .advice =
                                   "install CUDA's libraries (pip install nvidia-cublas does, "
                                   "too)"});
  CublasLt lt;
  library.find("cublasLtCreate", lt.create);
  library.find("cublasLtDestroy", lt.destroy);
  library.find("cublasLtGetVersion", lt.get_version);
  library.find("cublasLtGetStatusString", lt.get_status_string);
  library.find("cublasLtMatmulDescCreate", lt.matmul_desc_create);
  library.find("cublasLtMatmulDescDestroy", lt.matmul_desc_destroy);
  library.find("cublasLtMatmulDescSetAttribute", lt.matmul_desc_set_attribute);
  library.find("cublasLtMatrixLayoutCreate", lt.matrix_layout_create);
  library.find("cublasLtMatrixLayoutDestroy", lt.matrix_layout_destroy);
  library.find("cublasLtMatmulPreferenceCreate", lt.preference_create);
  library.find("cublasLtMatmulPreferenceDestroy", lt.preference_destroy);
  library.find("cublasLtMatmulPreferenceSetAttribute", lt.preference_set_attribute);
  library.find("cublasLtMatmulAlgoGetHeuristic", lt.algo_get_heuristic);
  library.find("cublasLtMatmulAlgoCheck", lt.algo_check);
  library.find("cublasLtMatmulAlgoConfigGetAttribute", lt.algo_config_get_attribute);
  library.find("cublasLtMatmul", lt.matmul);
  return lt;
}

}  // namespace lathe::cuda
