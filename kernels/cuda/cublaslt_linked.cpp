// Replaces cublaslt_library.cpp if cuBLASLt is linked: in builds for CUDA on the CPU.
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
