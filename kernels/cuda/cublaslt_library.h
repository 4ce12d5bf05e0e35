// cuBLASLt, loaded when the first product needs it. libcublasLt is half a gigabyte, would delay
// every start of a program that links it by a sixth of a second, and is absent on machines without
// a GPU. The build for CUDA on the CPU fills the same struct with functions of its own.
#pragma once

#include <cublasLt.h>

namespace lathe::cuda {

// Exactly the functions that lathe calls.
struct CublasLt {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) get_version = nullptr;
  decltype(&cublasLtGetStatusString) get_status_string = nullptr;
  decltype(&cublasLtMatmulDescCreate) matmul_desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) matmul_desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) matmul_desc_set_attribute = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) matrix_layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) matrix_layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_attribute = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) algo_get_heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) algo_check = nullptr;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_config_get_attribute = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
};

// The library of the CUDA version that lathe was built with, found as shared_library.h describes
// (LATHE_CUBLASLT names a file). Throws a UserError if it is not found.
CublasLt load_cublaslt();

}  // namespace lathe::cuda
