// Takes the place of kernels/cuda/cublaslt_library.cpp: the functions of the stand-in.
#include "kernels/cuda/cublaslt_library.h"

namespace lathe::cuda {

CublasLt load_cublaslt() {
  return {cublasLtCreate,
          cublasLtDestroy,
          cublasLtGetVersion,
          cublasLtGetStatusString,
          cublasLtMatmulDescCreate,
          cublasLtMatmulDescDestroy,
          cublasLtMatmulDescSetAttribute,
          cublasLtMatrixLayoutCreate,
          cublasLtMatrixLayoutDestroy,
          cublasLtMatmulPreferenceCreate,
          cublasLtMatmulPreferenceDestroy,
          cublasLtMatmulPreferenceSetAttribute,
          cublasLtMatmulAlgoGetHeuristic,
          cublasLtMatmulAlgoCheck,
          cublasLtMatmulAlgoConfigGetAttribute,
          cublasLtMatmul};
}

}  // namespace lathe::cuda
