#pragma once
// cuBLASLt, loaded when a product first needs it: its own initialisation takes a tenth of a second
// of every process that links it, and half a gigabyte of file. CUDA builds only.

#include <cublasLt.h>

namespace longhaul::runtime::ops::detail {

/// The functions that products need, by their names.
struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetVersion) get_version;
  decltype(&cublasLtGetStatusString) get_status_string;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) matmul_algo_get_heuristic;
  decltype(&cublasLtMatmulDescInit_internal) matmul_desc_init;
  decltype(&cublasLtMatmulDescSetAttribute) matmul_desc_set_attribute;
  decltype(&cublasLtMatmulPreferenceInit_internal) matmul_preference_init;
  decltype(&cublasLtMatmulPreferenceSetAttribute) matmul_preference_set_attribute;
  decltype(&cublasLtMatrixLayoutInit_internal) matrix_layout_init;
};

/// Throws Error(launch) where the library, of the build's major version, is not found or lacks a
/// function.
const CublasLt& cublas_lt();

}  // namespace longhaul::runtime::ops::detail
